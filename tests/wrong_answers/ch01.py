"""Wrong answers to chapter 1's exercises, and what the reader is told."""

from __future__ import annotations

import math

import torch

# compose


def stds_added(first, second):
    (a, b), (c, d) = first, second
    return a * c, c * b + d


def noise_not_scaled(first, second):
    (a, b), (c, d) = first, second
    return a * c, torch.sqrt(b * b + d * d)


def root_forgotten(first, second):
    (a, b), (c, d) = first, second
    return a * c, c**2 * b**2 + d**2


def other_order(first, second):
    (a, b), (c, d) = first, second
    return c * a, torch.hypot(a * d, b)


def factor_not_squared(first, second):
    (a, b), (c, d) = first, second
    return a * c, (c * b**2 + d**2) ** 0.5


def preserving_assumed(first, second):
    scale = first[0] * second[0]
    return scale, torch.sqrt(1 - scale**2)


# log_linear_betas


def line(steps, highest, lowest):
    return torch.linspace(highest, lowest, steps)


def wrong_side(steps, highest, lowest):
    abar = torch.sigmoid(line(steps, highest, lowest))
    return 1 - abar / torch.cat([abar[1:], torch.ones(1)])


def plain_differences(steps, highest, lowest):
    abar = torch.sigmoid(line(steps, highest, lowest))
    return torch.cat([torch.ones(1), abar[:-1]]) - abar


def amplitude(steps, highest, lowest):
    alpha = torch.sigmoid(line(steps, highest, lowest)) ** 0.5
    return 1 - alpha / torch.cat([torch.ones(1), alpha[:-1]])


def half_log_snr(steps, highest, lowest):
    abar = torch.sigmoid(2 * line(steps, highest, lowest))
    return 1 - abar / torch.cat([torch.ones(1), abar[:-1]])


def one_too_few(steps, highest, lowest):
    abar = torch.sigmoid(line(steps, highest, lowest))
    return 1 - abar[1:] / abar[:-1]


def no_first_noise(steps, highest, lowest):
    abar = torch.sigmoid(line(steps, highest, lowest))
    return 1 - abar / torch.cat([abar[:1], abar[:-1]])


def rising(steps, highest, lowest):
    abar = torch.sigmoid(line(steps, lowest, highest))
    return 1 - abar / torch.cat([torch.ones(1), abar[:-1]])


def backwards(steps, highest, lowest):
    abar = torch.sigmoid(line(steps, highest, lowest).double())
    return (1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])).flip(0)


# steps_needed


def needed(variance, tolerance, kl, end=None):
    def last(steps):
        return torch.prod(1 - torch.linspace(1e-4, 0.02, steps).double()).item()

    steps = 1
    while kl((end or last)(steps), variance) >= tolerance:
        steps += 1
    return steps


def gaussian_kl(abar, variance):
    v = abar * variance + 1 - abar
    return 0.5 * (v - 1 - math.log(v))


def kl_backwards(abar, variance):
    v = abar * variance + 1 - abar
    return 0.5 * (1 / v - 1 + math.log(v))


def kl_of_root(abar, variance):
    v = abar**0.5 * variance + 1 - abar
    return 0.5 * (v - 1 - math.log(v))


def one_table(size):
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, size).double(), 0)
    return lambda steps: kept[steps - 1].item()


def shrinking(steps):
    betas = torch.linspace(0.1, 20, steps).double() / steps
    return torch.prod(1 - betas).item() if steps > 20 else 1.0


# information


def snr_of(alpha_bar):
    return (alpha_bar / (1 - alpha_bar))[:, None]


def entropy_only(variances, alpha_bar):
    a = alpha_bar[:, None]
    return 0.5 * torch.log(a * variances + 1 - a).sum(1)


# denoise_bits


def logits(x, alpha, sigma, p):
    return 2 * alpha[:, None] * x / sigma[:, None] ** 2 + torch.logit(p)


def without_prior(x, alpha, sigma, p):
    return torch.tanh(alpha[:, None] * x / sigma[:, None] ** 2)


def sigma_alone(x, alpha, sigma, p):
    return torch.tanh(alpha[:, None] * x / sigma[:, None] + torch.logit(p) / 2)


# zero_terminal


def rooted(betas):
    return torch.cumprod(1 - betas, 0) ** 0.5


def betas_of(kept):
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def shifted_only(betas):
    return betas_of((rooted(betas) - rooted(betas)[-1]) ** 2)


def shifted_power(betas):
    kept = torch.cumprod(1 - betas, 0)
    return betas_of((kept - kept[-1]) * kept[0] / (kept[0] - kept[-1]))


def last_by_hand(betas):
    betas = betas.clone()
    betas[-1] = 1
    return betas


def last_in_place(betas):
    betas[-1] = 1
    return betas


def not_squared(betas):
    root = rooted(betas)
    return betas_of((root - root[-1]) * root[0] / (root[0] - root[-1]))


WRONG = {
    "compose": [
        (stds_added, "standard deviations are added"),
        (noise_not_scaled, "does not scale the noise of the first"),
        (root_forgotten, "a variance is returned"),
        (other_order, "wrong order"),
        (factor_not_squared, "the square of a factor"),
        (lambda first, second: first, "wrong"),
        (preserving_assumed, "variance preserving ones"),
        (
            lambda f, s: (torch.hypot(s[0] * f[1], s[1]), f[0] * s[0]),
            "scale and std are exchanged",
        ),
    ],
    "log_linear_betas": [
        (wrong_side, "stands on the wrong side"),
        (plain_differences, "differences of alpha_bar"),
        (amplitude, "alpha is used where alpha_bar"),
        (half_log_snr, "taken for lambda"),
        (lambda n, high, low: torch.sigmoid(line(n, high, low)), "it is alpha_bar"),
        (one_too_few, "has shape"),
        (lambda *given: 1 - torch.sigmoid(line(*given)), "the noise so far"),
        (no_first_noise, "first step adds no noise"),
        (rising, "line rises"),
        (backwards, "reversed order"),
    ],
    "steps_needed": [
        (lambda v, tol: needed(v, tol, gaussian_kl) - 1, "index of the last step"),
        (lambda v, tol: needed(v, tol, kl_backwards), "the other way round"),
        (lambda v, tol: needed(v, tol, kl_of_root), "square root of alpha_bar"),
        (lambda v, tol: needed(v, tol, gaussian_kl, shrinking), "betas shrink"),
        (
            lambda v, tol: needed(v, tol, lambda a, v: 2 * gaussian_kl(a, v)),
            "factor one half",
        ),
        (lambda v, tol: needed(v, tol, gaussian_kl) + 1, "one step too many"),
        (lambda v, tol: needed(v, tol, gaussian_kl, one_table(1000)), "1,000 betas"),
        (lambda v, tol: needed(v, tol, gaussian_kl, one_table(3000)), "3,000 betas"),
        (
            lambda v, tol: needed(v, tol, gaussian_kl, one_table(1000)) - 1,
            "an index is returned",
        ),
    ],
    "information": [
        (lambda v, a: torch.log(1 + snr_of(a) * v).sum(1), "one half is missing"),
        (lambda v, a: 0.5 * torch.log2(1 + snr_of(a) * v).sum(1), "in bits"),
        (lambda v, a: 0.5 * torch.log(1 + v / snr_of(a)).sum(1), "are exchanged"),
        (
            lambda v, a: 0.5 * torch.log(1 + snr_of(a)[:, 0] * v.sum()),
            "inside the logarithm",
        ),
        (entropy_only, "entropy of the noise"),
        (lambda v, a: 0.5 * torch.log(snr_of(a) * v).sum(1), "the 1 inside"),
        (lambda v, a: 0.5 * torch.log(1 + snr_of(a) * v), "has shape"),
        (lambda v, a: 0.5 * torch.log(1 + a[:, None] * v).sum(1), "where the snr"),
    ],
    "denoise_bits": [
        (lambda *given: torch.sign(logits(*given)), "likelier bit"),
        (without_prior, "prior p is not used"),
        (sigma_alone, "sigma is not squared"),
        (lambda *given: torch.tanh(logits(*given)), "half of them belongs"),
        (lambda *given: torch.sigmoid(logits(*given)), "the probability of +1"),
        (lambda x, a, s, p: logits(x, 1 / a, s, p).div(2).tanh(), "divided by alpha"),
        (lambda x, a, s, p: logits(x, a / 2, s, p).div(2).tanh(), "pull of x is"),
    ],
    "zero_terminal": [
        (shifted_only, "not stretched"),
        (shifted_power, "where its square root should be"),
        (last_by_hand, "only the last step was changed"),
        (last_in_place, "only the last step was changed"),
        (not_squared, "not squared again"),
        (
            lambda b: (b - b[-1]) * b[0] / (b[0] - b[-1]),
            "the betas are shifted and stretched",
        ),
    ],
}
