"""Wrong answers to chapter 5's exercises, and what the reader is told."""

from __future__ import annotations

import torch


def wrap(F, x, sigma, mean, std, skip=None, out=None, c_in=None, told=None, back=True):
    s = sigma[:, None]
    total = s**2 + std**2
    c_skip = std**2 / total if skip is None else skip(s, std)
    c_out = s * std / total.sqrt() if out is None else out(s, std)
    scale = total.rsqrt() if c_in is None else c_in(s, std)
    noise = sigma.log() / 4 if told is None else told(sigma)
    y = x - mean
    return (mean if back else 0) + c_skip * y + c_out * F(scale * y, noise)


def wrap_with(**how):
    return lambda *a: wrap(*a, **how)


def input_not_centred(F, x, sigma, mean, std):
    def shifted(y, c):
        root = (sigma[:, None] ** 2 + std**2).sqrt()
        return F(y + mean / root, c)

    return wrap(shifted, x, sigma, mean, std)


def skip_not_centred(F, x, sigma, mean, std):
    share = std**2 / (sigma[:, None] ** 2 + std**2)
    return wrap(F, x, sigma, mean, std) + share * mean


def input_by_mean_square(F, x, sigma, mean, std):
    total = mean**2 + std**2

    def c_in(s, d):
        return (s**2 + total).rsqrt()

    return wrap(F, x, sigma, mean, std, c_in=c_in)


def std_for_variance(F, x, sigma, mean, std):
    s = sigma[:, None]
    total = s**2 + std
    out = s * (std / total).sqrt() * F((x - mean) / total.sqrt(), sigma.log() / 4)
    return mean + std / total * (x - mean) + out


def loss(F, x0, eps, sigma, sigma_data, target=None, scaled=True, told=None):
    s, d = sigma[:, None], sigma_data
    root = (s**2 + d**2).sqrt()
    x = x0 + s * eps
    c_skip, c_out = d**2 / root**2, s * d / root
    right = (x0 - c_skip * x) / c_out
    aim = right if target is None else target(x0, eps, x, c_skip, c_out)
    noise = sigma.log() / 4 if told is None else told(sigma)
    return (F(x / root if scaled else x, noise) - aim).square()


def loss_with(reduce=lambda each: each.mean(1), **how):
    return lambda *a: reduce(loss(*a, **how))


def error_of_x0(F, x0, eps, sigma, sigma_data):
    s = sigma[:, None]
    total = s**2 + sigma_data**2
    x = x0 + s * eps
    out = s * sigma_data / total.sqrt() * F(x / total.sqrt(), sigma.log() / 4)
    return (sigma_data**2 / total * x + out - x0).square().mean(1)


def weighted_twice(F, x0, eps, sigma, sigma_data):
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    return loss(F, x0, eps, sigma, sigma_data).mean(1) / c_out**2


def sees_clean(F, x0, eps, sigma, sigma_data):
    root = (sigma[:, None] ** 2 + sigma_data**2).sqrt()

    def peeking(x, c):
        return F(x0 / root, c)

    return loss(peeking, x0, eps, sigma, sigma_data).mean(1)


def weighted(sigmas, best, u=torch.log, gap=lambda b: (1 - b).clamp(min=0), rule=None):
    u, g = u(sigmas), gap(best)
    rule = rule or torch.trapezoid
    total = rule(g, u)
    mean = rule(g * u, u) / total
    return mean, (rule(g * (u - mean) ** 2, u) / total).sqrt()


def in_sigma(sigmas, best):
    return weighted(sigmas, best, rule=lambda f, u: torch.trapezoid(f, u.exp()))


def squared(sigmas, best):
    mean, std = weighted(sigmas, best)
    return mean, std.square()


def mean_square(sigmas, best):
    u, g = sigmas.log(), (1 - best).clamp(min=0)
    total = torch.trapezoid(g, u)
    square = torch.trapezoid(g * u**2, u) / total
    return torch.trapezoid(g * u, u) / total, square.sqrt()


def lift(x, sigma, steps, knobs, z, gamma=None, spread=None, level=None, inside=None):
    churn, low, high, size = knobs
    within = low <= sigma <= high if inside is None else inside(low, sigma, high)
    cap = 2**0.5 - 1
    g = min(churn / steps, cap) if gamma is None else gamma(churn, steps)
    g = g if within else 0.0
    up = sigma * (1 + g)
    add = (up**2 - sigma**2) ** 0.5 if spread is None else spread(up, sigma)
    return x + add * size * z, up if level is None else level(sigma)


def lift_with(**how):
    return lambda *a: lift(*a, **how)


def quiet(x, sigma, steps, knobs, z):
    return lift(x, sigma, steps, (*knobs[:3], 1.0), z)


def noise_squared(x, sigma, steps, knobs, z):
    return lift(x, sigma, steps, (*knobs[:3], knobs[3] ** 2), z)


def share_added(x, sigma, steps, knobs, z):
    churn, low, high, size = knobs
    gamma = min(churn / steps, 2**0.5 - 1) if low <= sigma <= high else 0.0
    up = sigma + gamma
    return x + (up**2 - sigma**2) ** 0.5 * size * z, up


def range_of_raised(x, sigma, steps, knobs, z):
    churn, low, high, size = knobs
    up = sigma * (1 + min(churn / steps, 2**0.5 - 1))
    if not low <= up <= high:
        return x, sigma
    return x + (up**2 - sigma**2) ** 0.5 * size * z, up


def silent_outside(x, sigma, steps, knobs, z):
    if knobs[1] <= sigma <= knobs[2]:
        return lift(x, sigma, steps, knobs, z)
    return None


def reordered(*order):
    def answer(x, sigma, steps, knobs, z):
        return lift(x, sigma, steps, tuple(knobs[i] for i in order), z)

    return answer


def told_with_s_noise(x, sigma, steps, knobs, z):
    state, up = lift(x, sigma, steps, knobs, z)
    return state, (sigma**2 + knobs[3] ** 2 * (up**2 - sigma**2)) ** 0.5


def equal_steps(x, slopes, sigmas):
    h = sigmas[3] - sigmas[2]
    return x + h * (23 * slopes[2] - 16 * slopes[1] + 5 * slopes[0]) / 12


def two_slopes(x, slopes, sigmas):
    h, before = sigmas[3] - sigmas[2], sigmas[2] - sigmas[1]
    return x + h * ((1 + h / (2 * before)) * slopes[2] - h / (2 * before) * slopes[1])


def parabola(x, slopes, sigmas, start=2, sign=1.0):
    a, b = sigmas[start], sigmas[3]
    total = 0
    for j in range(3):
        one, two = (sigmas[i] for i in range(3) if i != j)

        def f(u, one=one, two=two, j=j):
            scale = (sigmas[j] - one) * (sigmas[j] - two)
            return (u - one) * (u - two) / scale

        simpson = (b - a) / 6 * (f(a) + 4 * f((a + b) / 2) + f(b))
        total = total + simpson * slopes[j]
    return x + sign * total


def rule_with(rule):
    """The parabola integrated by a rule of (f, a, b)."""

    def step(x, slopes, sigmas):
        def f(u):
            total = 0
            for j in range(3):
                one, two = (sigmas[i] for i in range(3) if i != j)
                scale = (sigmas[j] - one) * (sigmas[j] - two)
                total = total + (u - one) * (u - two) / scale * slopes[j]
            return total

        return x + rule(f, sigmas[2], sigmas[3])

    return step


def midpoint(f, a, b):
    return (b - a) * f((a + b) / 2)


def trapezoid(f, a, b):
    return (b - a) / 2 * (f(a) + f(b))


def simpson_by_three(f, a, b):
    return (b - a) / 3 * (f(a) + 4 * f((a + b) / 2) + f(b))


WRONG = {
    "wrapped": [
        (lambda F, x, s, m, d: wrap(F, x, s, 0.0, d), "the mean is left out"),
        (wrap_with(back=False), "not put back"),
        (input_not_centred, "network's input is not centred"),
        (skip_not_centred, "skipped input is not centred"),
        (
            lambda F, x, s, m, d: wrap(F, x, s, m, (m**2 + d**2) ** 0.5),
            "mean square stands",
        ),
        (input_by_mean_square, "the input is scaled by the mean square"),
        (std_for_variance, "std is taken for a variance"),
        (
            wrap_with(out=lambda s, d: -s * d / (s**2 + d**2).sqrt()),
            "answer is subtracted",
        ),
        (wrap_with(c_in=lambda s, d: 1.0), "the input is not scaled"),
        (wrap_with(c_in=lambda s, d: 1 / (s**2 + d**2)), "scaling of the input"),
        (wrap_with(out=lambda s, d: s * d / (s**2 + d**2)), "scaling of the output"),
        (wrap_with(skip=lambda s, d: s**2 / (s**2 + d**2)), "ends are exchanged"),
        (wrap_with(skip=lambda s, d: d / (s + d)), "lacks its squares"),
        (wrap_with(out=lambda s, d: s), "at small noise alone"),
        (wrap_with(out=lambda s, d: d), "at large noise alone"),
        (wrap_with(told=lambda s: s), "told sigma itself"),
        (wrap_with(told=torch.log), "the quarter is missing"),
        (lambda *a: None, "returned None"),
    ],
    "raw_loss": [
        (loss_with(target=lambda x0, *_: x0), "for the data at every level"),
        (loss_with(target=lambda x0, eps, *_: eps), "for the noise at every level"),
        (
            loss_with(target=lambda x0, e, x, skip, out: (skip * x - x0) / out),
            "opposite sign",
        ),
        (
            loss_with(target=lambda x0, e, x, skip, out: x0 - skip * x),
            "not divided by c_out",
        ),
        (
            loss_with(target=lambda x0, e, x, skip, out: out * (x0 - skip * x)),
            "multiplied by c_out",
        ),
        (
            loss_with(target=lambda x0, e, x, skip, out: (x0 - skip * x0) / out),
            "multiplies the clean x0",
        ),
        (loss_with(target=lambda x0, e, x, skip, out: x0 / out), "skip is left out"),
        (loss_with(scaled=False), "input is not scaled"),
        (loss_with(told=lambda s: s), "told sigma itself"),
        (loss_with(told=torch.log), "the quarter is missing"),
        (error_of_x0, "without the weight"),
        (weighted_twice, "once more"),
        (sees_clean, "gets the clean x0"),
        (loss_with(reduce=lambda each: each.sum(1)), "summed over the elements"),
        (lambda *a: None, "returned None"),
    ],
    "matched": [
        (in_sigma, "run over sigma"),
        (lambda s, b: weighted(s, b, u=lambda v: v), "the mean of sigma"),
        (lambda s, b: weighted(s, b, u=torch.log10), "base 10"),
        (lambda s, b: weighted(s, b, rule=lambda f, u: f.sum()), "plain sums"),
        (lambda s, b: weighted(s, b, gap=lambda v: 1 - v), "should count as 0"),
        (lambda s, b: weighted(s, b, gap=lambda v: v), "best loss itself"),
        (squared, "the variance is returned"),
        (mean_square, "root of the mean square"),
        (lambda s, b: weighted(s, b)[::-1], "in the other order"),
    ],
    "raise_level": [
        (lift_with(spread=lambda up, s: up - s), "levels are subtracted"),
        (lift_with(spread=lambda up, s: up**2 - s**2), "root of the difference"),
        (lift_with(spread=lambda up, s: up), "whole raised level"),
        (lift_with(inside=lambda *_: True), "range of levels is ignored"),
        (lift_with(inside=lambda low, s, high: low <= s), "upper limit of the range"),
        (lift_with(inside=lambda low, s, high: s <= high), "lower limit of the range"),
        (lift_with(inside=lambda low, s, high: low < s < high), "limits of the range"),
        (lift_with(inside=lambda low, s, high: low <= s < high), "upper limit is left"),
        (lift_with(inside=lambda low, s, high: low < s <= high), "lower limit is left"),
        (silent_outside, "returned None above"),
        (range_of_raised, "the raised level is looked up"),
        (reordered(0, 3, 1, 2), "nothing is ever raised"),
        (reordered(0, 2, 1, 3), "nothing is ever raised"),
        (reordered(3, 1, 2, 0), "S_churn and S_noise are exchanged"),
        (share_added, "gamma is added to the level"),
        (lift_with(spread=lambda up, s: (up - s) ** 0.5), "difference of the levels"),
        (noise_squared, "S_noise comes in squared"),
        (
            lift_with(gamma=lambda churn, n: max(churn / n, 2**0.5 - 1)),
            "the larger of the share and the cap",
        ),
        (lift_with(gamma=lambda churn, n: churn / n), "cap on gamma is missing"),
        (
            lift_with(gamma=lambda churn, n: min(churn, 2**0.5 - 1)),
            "not divided by the number of steps",
        ),
        (quiet, "S_noise is left out"),
        (told_with_s_noise, "scales the level too"),
        (lift_with(level=lambda s: s), "the level is not"),
        (lambda *a: lift(*a)[0], "not a tuple of 2"),
    ],
    "multistep": [
        (equal_steps, "steps of equal length"),
        (lambda x, e, s: x + (s[3] - s[2]) * e[2], "only the newest slope"),
        (lambda x, e, s: x + (s[3] - s[2]) * e.mean(0), "mean of the three"),
        (two_slopes, "second order"),
        (lambda x, e, s: parabola(x, e.flip(0), s), "newest to the oldest"),
        (lambda x, e, s: parabola(x, e, s, sign=-1.0), "sign of the step"),
        (lambda x, e, s: parabola(x, e, s, start=1), "starts at sigma_1"),
        (lambda x, e, s: parabola(x, e, s, start=0), "starts at sigma_0"),
        (rule_with(midpoint), "midpoint rule"),
        (rule_with(trapezoid), "trapezoidal rule"),
        (rule_with(simpson_by_three), "twice too large"),
        (lambda x, e, s: parabola(0 * x, e, s), "without the state"),
    ],
}
