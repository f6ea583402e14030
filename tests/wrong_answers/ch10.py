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


WRONG = {
    "search": [
        (search_on_test, "chosen on the test rows"),
        (search_with_leak, "validate nothing"),
        (search_on_train, "the rows the head was fitted to"),
        (search_without_refit, "not fitted anew"),
        (search_validation_score, "that of the validation rows"),
        (search_worst, "the worst cell"),
        (lambda cells, y, train, test, fit: None, "returned None"),
    ],
    "averaged": [
        (averaged_one_look, "looks once"),
        (averaged_last, "only the last noise"),
        (averaged_sum, "are summed"),
        (averaged_clean, "clean images"),
        (averaged_first_time, "told the first time"),
        (averaged_turned, "has shape"),
    ],
    "alignment_uniformity": [
        (spread_unscaled, "not scaled to length 1"),
        (spread_with_self, "distance to itself"),
        (spread_distances, "alignment takes distances"),
        (spread_without_log, "logarithm of the uniformity is missing"),
        (spread_log_inside, "logarithm stands inside"),
    ],
    "cka": [
        (cka_with_diagonal, "diagonals are not set to 0"),
        (cka_biased, "grows with the width"),
        (cka_uncentred, "not centred"),
        (cka_without_root, "square root in the denominator"),
        (cka_unnormalised, "not divided by the root"),
    ],
    "attend": [
        (attend_unscaled, "root of the width"),
        (attend_mean, "mean pooling"),
        (attend_samples, "over the samples"),
        (attend_scores_only, "softmax is missing"),
        (attend_hardest, "highest score"),
        (attend_averaged, "averaged once more"),
    ],
}
