"""Wrong answers to chapter 2's exercises, and what the reader is told."""

from __future__ import annotations

import torch


def tables(betas):
    abar = torch.cumprod(1 - betas, dim=0)
    return abar, torch.nn.functional.pad(abar[:-1], (1, 0), value=1.0)


def survey_posterior(x0, x_k, betas, k):
    abar, before = tables(betas)
    b, a, p = betas[k][:, None], abar[k][:, None], before[k][:, None]
    mean = (p.sqrt() * (1 - p) * x_k + p.sqrt() * b * x0) / (1 - a)
    return mean, (b * (1 - p) / (1 - a))[:, 0]


def padded_posterior(x0, x_k, betas, k):
    abar, _ = tables(betas)
    before = torch.nn.functional.pad(abar[1:], (0, 1), value=1.0)
    b, a, p = betas[k][:, None], abar[k][:, None], before[k][:, None]
    mean = ((1 - b).sqrt() * (1 - p) * x_k + p.sqrt() * b * x0) / (1 - a)
    return mean, (b * (1 - p) / (1 - a))[:, 0]


def large_posterior(x0, x_k, betas, k):
    abar, before = tables(betas)
    b, a, p = betas[k][:, None], abar[k][:, None], before[k][:, None]
    return ((1 - b).sqrt() * (1 - p) * x_k + p.sqrt() * b * x0) / (1 - a), b[:, 0]


def transposed_posterior(x0, x_k, betas, k):
    abar, before = tables(betas)
    b, a, p = betas[k], abar[k], before[k]
    mean = ((1 - b).sqrt() * (1 - p) * x_k.T + p.sqrt() * b * x0.T) / (1 - a)
    return mean, b * (1 - p) / (1 - a)


def posterior_before(before_of, variance_from=0):
    def posterior(x0, x_k, betas, k):
        abar, _ = tables(betas)
        before = before_of(abar)
        b, a, p = betas[k][:, None], abar[k][:, None], before[k][:, None]
        mean = ((1 - b).sqrt() * (1 - p) * x_k + p.sqrt() * b * x0) / (1 - a)
        return mean, (betas * (1 - before) / (1 - abar))[k.clamp(min=variance_from)]

    return posterior


def padded(abar):
    return torch.cat([torch.ones_like(abar[:1]), abar[:-1]])


def first_repeated(abar):
    return torch.cat([abar[:1], abar[:-1]])


def convert_reordered(*order):
    return lambda *a: tuple(convert_with()(*a)[i] for i in order)


def convert_rooted(x, value, kind, alpha, sigma):
    return convert_with()(x, value, kind, alpha.sqrt(), sigma.sqrt())


def convert_v_exchanged(x, value, kind, alpha, sigma):
    x0, eps, _, score = convert_with()(x, value, kind, alpha, sigma)
    return x0, eps, sigma[:, None] * eps - alpha[:, None] * x0, score


def convert_with(x0_of_v=-1, score_power=1, score_sign=-1, survey=False):
    def convert(x, value, kind, alpha, sigma):
        a, s = alpha[:, None], sigma[:, None]
        x0 = {
            "eps": (x - s * value) / a,
            "x0": value,
            "v": a * x + x0_of_v * s * value,
            "score": (x + s * s * value) / a,
        }[kind]
        eps = (x - a * x0) / s
        v = a * a * eps - s * s * x if survey else a * eps - s * x0
        return x0, eps, v, score_sign * eps / s**score_power

    return convert


def bits(x0, mean, log_variance, half=1 / 16, std=None, base=2.0, edges=True):
    std = log_variance.mul(0.5).exp() if std is None else std
    normal = torch.distributions.Normal(mean, std)
    top, bottom = normal.cdf(x0 + half), normal.cdf(x0 - half)
    if edges:
        top, bottom = top.clone(), bottom.clone()
        top[x0 == 1], bottom[x0 == -1] = 1.0, 0.0
    return -(top - bottom).log().mean(1) / torch.tensor(base).log()


def dual(x, eps_hat, x0_hat, r, alpha, sigma):
    r, a, s = r[:, None], alpha[:, None], sigma[:, None]
    return r * (x - s * eps_hat) / a + (1 - r) * x0_hat


def dual_unconverted(x, eps_hat, x0_hat, r, alpha, sigma):
    return r[:, None] * eps_hat + (1 - r[:, None]) * x0_hat


def dual_undivided(x, eps_hat, x0_hat, r, alpha, sigma):
    r, s = r[:, None], sigma[:, None]
    return r * (x - s * eps_hat) + (1 - r) * x0_hat


def step(x, eps, f, betas, k, z, root=True, last=0.0, logs=True, swap=False):
    abar, before = tables(betas)
    b, a, p = betas[k], abar[k], before[k]
    noise = 1 - a
    mean = (x - b * eps / (noise.sqrt() if root else noise)) / (1 - b).sqrt()
    if k == 0:
        return mean + last * b.sqrt() * z
    small, large = b * (1 - p) / (1 - a), b
    if swap:
        small, large = large, small
    variance = (
        torch.exp(f * large.log() + (1 - f) * small.log())
        if logs
        else f * large + (1 - f) * small
    )
    return mean + variance.sqrt() * z


def step_without_case(x, eps, f, betas, k, z):
    abar, before = tables(betas)
    b, a, p = betas[k], abar[k], before[k]
    mean = (x - b * eps / (1 - a).sqrt()) / (1 - b).sqrt()
    small = b * (1 - p) / (1 - a)
    return mean + ((f * b.log() + (1 - f) * small.log()) / 2).exp() * z


def step_over_abar(x, eps, f, betas, k, z):
    abar, _ = tables(betas)
    right = step(x, eps, f, betas, k, z)
    mean = (x - betas[k] * eps / (1 - abar[k]).sqrt()) / (1 - betas[k]).sqrt()
    return right - mean + mean * ((1 - betas[k]) / abar[k]).sqrt()


def weight(betas, factor=2.0, power=2, variance=None):
    abar, before = tables(betas)
    small = betas * (1 - before) / (1 - abar)
    variance = small if variance is None else variance
    return (betas**power / (factor * variance * (1 - betas) * (1 - abar)))[1:]


WRONG = {
    "posterior": [
        (survey_posterior, "as it is printed"),
        (padded_posterior, "padded at the wrong end"),
        (large_posterior, "the variance is that of the step forwards"),
        (transposed_posterior, "mean: the result has shape"),
        (posterior_before(lambda abar: abar.roll(1)), "without a 1 in front"),
        (posterior_before(first_repeated), "stands before index 0"),
        (posterior_before(padded, 1), "the variance at k = 0 is the next"),
        (lambda a, b, *c: posterior_before(padded)(b, a, *c), "are exchanged"),
    ],
    "convert": [
        (convert_with(x0_of_v=1), "where x0 is read from it"),
        (convert_with(score_power=0), "not divided by sigma"),
        (convert_with(score_power=2), "divided by the variance"),
        (convert_with(score_sign=1), "the sign of eps"),
        (convert_with(survey=True), "misprints"),
        (convert_v_exchanged, "v with alpha and sigma exchanged"),
        (convert_rooted, "they are asked as they are"),
        (convert_reordered(1, 0, 2, 3), "in another order"),
        (convert_reordered(0, 1, 3, 2), "v and the score are exchanged"),
    ],
    "bits_per_dim": [
        (lambda *a: bits(*a, base=torch.e), "nats"),
        (lambda *a: bits(*a, edges=False), "outer two levels"),
        (lambda *a: bits(*a, half=1 / 8), "twice the width"),
        (lambda x0, m, v: bits(x0, m, v, std=v.exp()), "variance is used as a"),
        (lambda *a: bits(*a) * a[0].shape[1], "a sum over the elements"),
        (lambda *a: bits(*a).mean(), "the result has shape ()"),
    ],
    "dual_x0": [
        (lambda x, e, x0, r, a, s: dual(x, e, x0, 1 - r, a, s), "the other estimate"),
        (dual_unconverted, "was not converted"),
        (dual_undivided, "the division by alpha is missing"),
        (lambda *a: dual(*a[:4], a[5], a[4]), "its values are wrong"),
    ],
    "ancestral_step": [
        (lambda *a: step(*a, last=1.0), "in the last step"),
        (lambda x, e, f, b, k, z: step(x, e, f, b, k, e), "again as fresh noise"),
        (lambda *a: step(*a, root=False), "root of 1 - alpha_bar is missing"),
        (lambda *a: step(*a, logs=False), "where their logarithms are asked"),
        (lambda *a: step(*a, swap=True), "bounds of the variance are exchanged"),
        (step_without_case, "k = 0 has no case of its own"),
        (step_over_abar, "alpha_bar stands where 1 - beta belongs"),
        (lambda x, e, f, *a: step(x, e, 0 * f, *a), "always the small one"),
        (lambda x, e, f, *a: step(x, e, 0 * f + 1, *a), "always the large one"),
    ],
    "vlb_weight": [
        (lambda b: weight(b, factor=1.0), "the half of the divergence"),
        (lambda b: weight(b, power=1), "beta is not squared"),
        (lambda b: weight(b, variance=b), "variance of the step forwards"),
        (lambda b: torch.cat([weight(b), weight(b)[:1]]), "the result has shape"),
    ],
}
