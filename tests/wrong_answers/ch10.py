"""Wrong answers to chapter 10's exercises, and what the reader is told."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from diffedu import features


def hits(fit, x, y, rows, asked):
    return (fit(x[rows], y[rows])(x[asked]) == y[asked]).double().mean()


def halves(train):
    fifth = len(train) // 5
    return train[:-fifth], train[-fifth:]


def search_on_test(cells, y, train, test, fit):
    scores = [hits(fit, x, y, train, test) for x in cells]
    best = int(torch.stack(scores).argmax())
    return best, scores[best]


def search_with_leak(cells, y, train, test, fit):
    kept, held = halves(train)
    scores = torch.stack([hits(fit, x, y, train, held) for x in cells])
    best = int(scores.argmax())
    return best, hits(fit, cells[best], y, train, test)


def search_on_train(cells, y, train, test, fit):
    kept, held = halves(train)
    scores = torch.stack([hits(fit, x, y, kept, kept) for x in cells])
    best = int(scores.argmax())
    return best, hits(fit, cells[best], y, train, test)


def search_without_refit(cells, y, train, test, fit):
    kept, held = halves(train)
    scores = torch.stack([hits(fit, x, y, kept, held) for x in cells])
    best = int(scores.argmax())
    return best, hits(fit, cells[best], y, kept, test)


def search_validation_score(cells, y, train, test, fit):
    kept, held = halves(train)
    scores = torch.stack([hits(fit, x, y, kept, held) for x in cells])
    return int(scores.argmax()), scores.max()


def search_worst(cells, y, train, test, fit):
    kept, held = halves(train)
    scores = torch.stack([hits(fit, x, y, kept, held) for x in cells])
    best = int(scores.argmin())
    return best, hits(fit, cells[best], y, train, test)


def search_scores(cells, y, train, fit):
    kept, held = halves(train)
    return [float(hits(fit, x, y, kept, held)) for x in cells]


def search_on_held_rows(cells, y, train, test, fit):
    scores = search_scores(cells, y, train, fit)
    best = scores.index(max(scores))
    return best, hits(fit, cells[best], y, halves(train)[1], test)


def search_fitted_to_test(cells, y, train, test, fit):
    scores = search_scores(cells, y, train, fit)
    best = scores.index(max(scores))
    return best, hits(fit, cells[best], y, torch.cat([train, test]), test)


def search_last_of_equals(cells, y, train, test, fit):
    best, highest = 0, -1.0
    for i, score in enumerate(search_scores(cells, y, train, fit)):
        if score >= highest:
            best, highest = i, score
    return best, hits(fit, cells[best], y, train, test)


def search_by_counts(cells, y, train, test, fit):
    n = len(train)
    rows, asked = torch.arange(n), torch.arange(n, n + len(test))
    scores = search_scores(cells, y, rows, fit)
    best = scores.index(max(scores))
    return best, hits(fit, cells[best], y, rows, asked)


def search_exchanged(cells, y, train, test, fit):
    scores = search_scores(cells, y, train, fit)
    best = scores.index(max(scores))
    return hits(fit, cells[best], y, train, test), best


def look(denoise, block, x_t, t):
    with torch.no_grad(), features.record(denoise, [block]) as seen:
        denoise(x_t, torch.tensor(t, dtype=x_t.dtype))
    return seen[block].mean((2, 3))


def noised(denoise, x0, t, eps):
    return denoise.schedule.add_noise(x0, torch.tensor(t, dtype=x0.dtype), eps)


def averaged_one_look(denoise, block, x0, times, noises):
    eps = noises.mean(0)
    return torch.stack(
        [look(denoise, block, noised(denoise, x0, t, eps), t) for t in times]
    )


def averaged_last(denoise, block, x0, times, noises):
    rows = []
    for t in times:
        for eps in noises:
            h = look(denoise, block, noised(denoise, x0, t, eps), t)
        rows.append(h)
    return torch.stack(rows)


def averaged_sum(denoise, block, x0, times, noises):
    return torch.stack(
        [
            sum(look(denoise, block, noised(denoise, x0, t, e), t) for e in noises)
            for t in times
        ]
    )


def averaged_clean(denoise, block, x0, times, noises):
    return torch.stack([look(denoise, block, x0, t) for t in times])


def averaged_first_time(denoise, block, x0, times, noises):
    rows = []
    for t in times:
        looks = [look(denoise, block, noised(denoise, x0, t, e), times[0])
                 for e in noises]  # fmt: skip
        rows.append(torch.stack(looks).mean(0))
    return torch.stack(rows)


def averaged_one_each(denoise, block, x0, times, noises):
    return torch.stack(
        [
            look(denoise, block, noised(denoise, x0, t, noises[k % len(noises)]), t)
            for k, t in enumerate(times)
        ]
    )


def averaged_over_times(denoise, block, x0, times, noises):
    right = averaged_sum(denoise, block, x0, times, noises) / len(noises)
    return right.mean(0).repeat(len(times), 1, 1)


def averaged_exchanged(denoise, block, x0, times, noises):
    rows = []
    for t in times:
        now = torch.tensor(t, dtype=x0.dtype)
        a, s = denoise.schedule.alpha(now), denoise.schedule.sigma(now)
        looks = [look(denoise, block, s * x0 + a * e, t) for e in noises]
        rows.append(torch.stack(looks).mean(0))
    return torch.stack(rows)


def averaged_turned(denoise, block, x0, times, noises):
    right = averaged_sum(denoise, block, x0, times, noises) / len(noises)
    return right.transpose(0, 1)


def spread(a, b):
    off = torch.pdist(a).square()
    return (a - b).square().sum(1).mean(), (-2 * off).exp().mean().log()


def spread_unscaled(a, b):
    return spread(a, b)


def spread_with_self(a, b):
    a, b = normalize(a), normalize(b)
    far = (-2 * torch.cdist(a, a).square()).exp()
    return (a - b).square().sum(1).mean(), far.mean().log()


def spread_distances(a, b):
    a, b = normalize(a), normalize(b)
    return (a - b).norm(dim=1).mean(), spread(a, b)[1]


def spread_without_log(a, b):
    close, even = spread(normalize(a), normalize(b))
    return close, even.exp()


def spread_log_inside(a, b):
    a, b = normalize(a), normalize(b)
    return spread(a, b)[0], -2 * torch.pdist(a).square().mean()


def spread_counted(a, b, pairs, own=0.0, sign=-2.0):
    n, far = len(a), torch.pdist(normalize(a)).square()
    total = pairs * (sign * far).exp().sum() + own * n
    return spread(normalize(a), normalize(b))[0], (total / n / (n - 1)).log()


def spread_of_cosines(a, b):
    a, b = normalize(a), normalize(b)
    return (a * b).sum(1).mean(), spread(a, b)[1]


def grams(a, b, diagonal=False):
    k, m = a @ a.T, b @ b.T
    if not diagonal:
        k.fill_diagonal_(0)
        m.fill_diagonal_(0)
    return k, m


def hsic(k, m):
    n = len(k)
    whole = k.sum() * m.sum() / (n - 1) / (n - 2)
    mixed = 2 * (k.sum(0) * m.sum(0)).sum() / (n - 2)
    return ((k * m).sum() + whole - mixed) / n / (n - 3)


def cka_with_diagonal(a, b):
    k, m = grams(a, b, diagonal=True)
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


def cka_biased(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    top = (a.T @ b).square().sum()
    return top / ((a.T @ a).norm() * (b.T @ b).norm())


def cka_uncentred(a, b):
    k, m = grams(a, b)
    return (k * m).sum() / (k.norm() * m.norm())


def cka_without_root(a, b):
    k, m = grams(a, b)
    return hsic(k, m) / (hsic(k, k) * hsic(m, m))


def cka_unnormalised(a, b):
    return hsic(*grams(a, b))


def cka_of(a, b, form):
    k, m = grams(a, b)
    return form(k, m) / (form(k, k) * form(m, m)).abs().sqrt()


def middle(k, m):
    return k.sum() * m.sum() / (len(k) - 1) / (len(k) - 2)


def cka_added(a, b):
    return cka_of(a, b, lambda k, m: (k * m).sum() + middle(k, m)
                  + 2 / (len(k) - 2) * (k @ m).sum())  # fmt: skip


def cka_all_entries(a, b):
    return cka_of(a, b, lambda k, m: (k @ m).sum() + middle(k, m)
                  - 2 / (len(k) - 2) * (k @ m).sum())  # fmt: skip


def cka_one_diagonal(a, b):
    k, m = grams(a, b)[0], b @ b.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


def cka_of_unit_rows(a, b):
    return cka_of(normalize(a), normalize(b), hsic)


def attend_unscaled(h, query):
    flat = h.flatten(2)
    weights = torch.einsum("c,bcp->bp", query, flat).softmax(1)
    return (weights[:, None] * flat).sum(2)


def attend_mean(h, query):
    return h.mean((2, 3))


def attend_samples(h, query):
    flat = h.flatten(2)
    scores = torch.einsum("c,bcp->bp", query, flat) / len(query) ** 0.5
    return (scores.softmax(0)[:, None] * flat).sum(2)


def attend_scores_only(h, query):
    flat = h.flatten(2)
    scores = torch.einsum("c,bcp->bp", query, flat) / len(query) ** 0.5
    return (scores[:, None] * flat).sum(2)


def attend_hardest(h, query):
    flat = h.flatten(2)
    best = torch.einsum("c,bcp->bp", query, flat).argmax(1)
    return flat[torch.arange(len(h)), :, best]


def attend_averaged(h, query):
    flat = h.flatten(2)
    scores = torch.einsum("c,bcp->bp", query, flat) / len(query) ** 0.5
    return (scores.softmax(1)[:, None] * flat).mean(2)


def attend_root_of_places(h, query):
    flat = h.flatten(2)
    scores = torch.einsum("c,bcp->bp", query, flat) / flat.shape[2] ** 0.5
    return (scores.softmax(1)[:, None] * flat).sum(2)


def attend_along_rows(h, query):
    scores = (h * query[:, None, None]).sum(1) / len(query) ** 0.5
    return (scores.softmax(-1)[:, None] * h).sum((2, 3))


def attend_sigmoid(h, query):
    scores = (h * query[:, None, None]).sum(1) / len(query) ** 0.5
    return (scores.sigmoid()[:, None] * h).sum((2, 3))


WRONG = {
    "search": [
        (search_on_test, "chosen on the test rows"),
        (search_with_leak, "validate nothing"),
        (search_on_train, "the rows the head was fitted to"),
        (search_without_refit, "not fitted anew"),
        (search_validation_score, "that of the validation rows"),
        (search_worst, "the worst cell"),
        (search_on_held_rows, "the validation rows alone"),
        (search_fitted_to_test, "fitted to the test rows"),
        (search_last_of_equals, "of equal cells the last"),
        (search_by_counts, "taken for counts"),
        (search_exchanged, "two results are exchanged"),
        (lambda cells, y, train, test, fit: None, "returned None"),
    ],
    "averaged": [
        (averaged_one_look, "looks once"),
        (averaged_last, "only the last noise"),
        (averaged_sum, "are summed"),
        (averaged_clean, "clean images"),
        (averaged_first_time, "told the first time"),
        (averaged_one_each, "a noise of its own"),
        (averaged_over_times, "the times are averaged too"),
        (averaged_exchanged, "alpha and sigma are exchanged"),
        (averaged_turned, "has shape"),
    ],
    "alignment_uniformity": [
        (spread_unscaled, "not scaled to length 1"),
        (spread_with_self, "distance to itself"),
        (spread_distances, "alignment takes distances"),
        (spread_without_log, "logarithm of the uniformity is missing"),
        (spread_log_inside, "logarithm stands inside"),
        (lambda a, b: spread_counted(a, b, 2, own=1), "in the sum of N (N - 1)"),
        (lambda a, b: spread_counted(a, b, 1), "counted once in the sum"),
        (lambda a, b: spread_counted(a, b, 2, sign=2), "sign in the exponent"),
        (spread_of_cosines, "alignment is the cosine"),
    ],
    "cka": [
        (cka_with_diagonal, "diagonals are not set to 0"),
        (cka_biased, "grows with the width"),
        (cka_uncentred, "not centred"),
        (cka_without_root, "square root in the denominator"),
        (cka_unnormalised, "not divided by the root"),
        (cka_added, "the mixed term is added"),
        (cka_all_entries, "all entries of K L"),
        (cka_one_diagonal, "one of the two diagonals"),
        (cka_of_unit_rows, "scaled to length 1 first"),
    ],
    "attend": [
        (attend_unscaled, "root of the width"),
        (attend_mean, "mean pooling"),
        (attend_samples, "over the samples"),
        (attend_scores_only, "softmax is missing"),
        (attend_hardest, "highest score"),
        (attend_averaged, "averaged once more"),
        (attend_root_of_places, "number of places"),
        (attend_along_rows, "along each row of places"),
        (attend_sigmoid, "a sigmoid"),
        (lambda h, query: h.amax((2, 3)), "largest value of each channel"),
    ],
}
