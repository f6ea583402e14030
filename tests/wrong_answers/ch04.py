"""Wrong answers to chapter 4's exercises, and what the reader is told."""

from __future__ import annotations

import torch


def vp_parts(t, beta_min, beta_max):
    beta = beta_min + (beta_max - beta_min) * t
    total = beta_min * t + 0.5 * (beta_max - beta_min) * t**2
    return beta, total, 1 - torch.exp(-total)


def sub_root(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    g = (beta * (1 - torch.exp(-2 * total))).sqrt()
    return torch.exp(-total / 2), spread.sqrt(), g


def sub_variance(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    g = (beta * (1 - torch.exp(-2 * total))).sqrt()
    return torch.exp(-total / 2), spread**2, g


def sub_vp_noise(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    return torch.exp(-total / 2), spread, beta.sqrt()


def sub_once(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    return torch.exp(-total / 2), spread, (beta * spread).sqrt()


def sub_no_root(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    return torch.exp(-total / 2), spread, beta * (1 - torch.exp(-2 * total))


def sub_alpha_bar(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    g = (beta * (1 - torch.exp(-2 * total))).sqrt()
    return torch.exp(-total), spread, g


def sub_product(t, low, high):
    total = (low + (high - low) * t) * t
    beta, spread = low + (high - low) * t, 1 - torch.exp(-total)
    g = (beta * (1 - torch.exp(-2 * total))).sqrt()
    return torch.exp(-total / 2), spread, g


def sub_right(t, low, high):
    beta, total, spread = vp_parts(t, low, high)
    g = (beta * (1 - torch.exp(-2 * total))).sqrt()
    return torch.exp(-total / 2), spread, g


def sub_one_minus_alpha(t, low, high):
    alpha, _, g = sub_right(t, low, high)
    return alpha, 1 - alpha, g


def sub_exchanged(t, low, high):
    alpha, sigma, g = sub_right(t, low, high)
    return sigma, alpha, g


def sub_half_rooted(t, low, high):
    alpha, sigma, _ = sub_right(t, low, high)
    beta, total, _ = vp_parts(t, low, high)
    return alpha, sigma, beta.sqrt() * (1 - torch.exp(-2 * total))


def family(share, noise=lambda k, dt: k * dt**0.5, turn=1.0, sign=-1.0, power=2):
    def answer(x, score, f, g, length, kappa, z):
        drift = turn * f * x + sign * share(kappa) * g**power * score
        return x - drift * length + g * noise(kappa, length) * z

    return answer


def family_whole_bracket(x, score, f, g, length, kappa, z):
    drift = f * x - right_share(kappa) * g**2 * score
    return x - drift + kappa * g * length**0.5 * z


def family_g_twice(x, score, f, g, length, kappa, z):
    drift = f * x - right_share(kappa) * g**2 * score
    return x - drift * length + kappa * g**2 * length**0.5 * z


def right_share(kappa):
    return (1 + kappa**2) / 2


def climb(velocity, x, times, probes, at=0, again=True, weigh=True, move=True):
    total = torch.zeros(probes.shape[:2], dtype=x.dtype)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x.detach().requires_grad_()
        u = velocity(x, (t, s)[at])
        rows = [
            torch.autograd.grad((u * xi).sum(), x, retain_graph=True)[0]
            for xi in probes
        ]
        rows = torch.stack(rows)
        rate = (rows * probes if again else rows).sum(2)
        total = total + ((s - t) if weigh else 1) * rate
        x = x + (s - t) * u if move else x
    return total.detach()


def step_errors(velocity, x, times, probes, power):
    total, spread = 0, 0
    for t, s in zip(times[:-1], times[1:], strict=True):
        rates = climb(velocity, x, torch.stack([t, s]), probes)
        total, spread = total + rates, spread + rates.std(0) ** power
        x = (x + (s - t) * velocity(x, t)).detach()
    return total.mean(0), spread ** (1 / power) / len(probes) ** 0.5


def volume_heun(velocity, x, times, probes):
    total = 0
    for t, s in zip(times[:-1], times[1:], strict=True):
        u, one = velocity(x, t).detach(), torch.stack([t, s])
        ahead = x + (s - t) * u
        at_end = climb(velocity, ahead, one, probes, at=1)
        total = total + (climb(velocity, x, one, probes) + at_end) / 2
        x = (x + (s - t) / 2 * (u + velocity(ahead, s))).detach()
    return summary(total)


def variance_of(total):
    return total.mean(0), total.var(0) / len(total) ** 0.5


def summary(total, scale=None):
    count = len(total)
    scale = count**0.5 if scale is None else scale
    return total.mean(0), total.std(0) / scale


def population(total):
    return total.mean(0), total.std(0, correction=0) / len(total) ** 0.5


def height(x0, x0_hats, log_snr):
    return 0.5 * log_snr.exp()[:, None] * (x0_hats - x0).square().sum(2)


def term_sign(x0, x0_hats, log_snr):
    return torch.trapezoid(height(x0, x0_hats, log_snr), log_snr, dim=0)


def term_whole(x0, x0_hats, log_snr):
    return -2 * term_sign(x0, x0_hats, log_snr)


def term_noise(x0, x0_hats, log_snr):
    error = 0.5 * (x0_hats - x0).square().sum(2)
    return -torch.trapezoid(error, log_snr, dim=0)


def term_mean(x0, x0_hats, log_snr):
    return -term_sign(x0, x0_hats, log_snr) / x0.shape[1]


def term_left(x0, x0_hats, log_snr):
    steps = -log_snr.diff()[:, None]
    return (steps * height(x0, x0_hats, log_snr)[:-1]).sum(0)


def term_over_snr(x0, x0_hats, log_snr):
    return -torch.trapezoid(height(x0, x0_hats, log_snr), log_snr.exp(), dim=0)


def term_even(x0, x0_hats, log_snr):
    return (log_snr[0] - log_snr[-1]) * height(x0, x0_hats, log_snr).mean(0)


def term_chain(x0, x0_hats, log_snr, end=1):
    missed = (x0 - x0_hats).square().sum(2)
    snr = log_snr.exp()
    gain = snr[:-1] - snr[1:]
    return 0.5 * (gain[:, None] * (missed[1:] if end else missed[:-1])).sum(0)


def term_in_snr(x0, x0_hats, log_snr):
    missed = (x0 - x0_hats).square().sum(2)
    return -0.5 * torch.trapezoid(missed, log_snr.exp(), dim=0)


def term_root_snr(x0, x0_hats, log_snr):
    missed = (x0 - x0_hats).square().sum(2)
    weight = 0.5 * (log_snr / 2).exp()[:, None]
    return -torch.trapezoid(weight * missed, log_snr, dim=0)


def euler(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x + (s - t) * velocity(x, t)
    return x


def heun_old_point(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = x + (s - t) / 2 * (velocity(x, t) + velocity(x, s))
    return x


def heun_old_time(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        u = velocity(x, t)
        x = x + (s - t) / 2 * (u + velocity(x + (s - t) * u, t))
    return x


def heun_added(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        u = velocity(x, t)
        x = x + (s - t) * (u + velocity(x + (s - t) * u, s))
    return x


def heun_from_guess(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        u = velocity(x, t)
        guess = x + (s - t) * u
        x = guess + (s - t) / 2 * (u + velocity(guess, s))
    return x


def heun_backwards(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        u = velocity(x, t)
        x = x - (s - t) / 2 * (u + velocity(x - (s - t) * u, s))
    return x


def heun(velocity, x, times, length=lambda t, s: s - t):
    for t, s in zip(times[:-1], times[1:], strict=True):
        h, u = length(t, s), velocity(x, t)
        x = x + h / 2 * (u + velocity(x + h * u, s))
    return x


def heun_even(velocity, x, times):
    mean = (times[-1] - times[0]) / (len(times) - 1)
    return heun(velocity, x, times, lambda t, s: mean)


def midpoint(velocity, x, times):
    for t, s in zip(times[:-1], times[1:], strict=True):
        half = x + (s - t) / 2 * velocity(x, t)
        x = x + (s - t) * velocity(half, (t + s) / 2)
    return x


WRONG = {
    "sub_vp": [
        (sub_root, "that of the VP path"),
        (sub_variance, "the variance is returned"),
        (sub_vp_noise, "the noise of the VP SDE"),
        (sub_once, "factor 2 missing"),
        (sub_no_root, "the root is missing"),
        (sub_alpha_bar, "alpha is squared"),
        (sub_product, "in the place of the integral"),
        (sub_one_minus_alpha, "alpha's factor one half"),
        (sub_exchanged, "alpha and sigma are exchanged"),
        (sub_half_rooted, "over beta alone"),
        (lambda t, a, b: None, "returned None"),
    ],
    "family_step": [
        (family(lambda k: 0.5), "the ODE's"),
        (family(lambda k: 1.0), "the SDE's"),
        (family(lambda k: (1 + k) / 2), "kappa is not squared"),
        (family(lambda k: 1 + k**2 / 2), "only kappa squared is halved"),
        (family(lambda k: (1 + k) ** 2 / 2), "the sum is squared"),
        (family(right_share, lambda k, dt: k), "by the root of the length"),
        (family_whole_bracket, "the bracket is not multiplied"),
        (family_g_twice, "in front of the noise too"),
        (family(right_share, power=1), "g is not squared"),
        (family(right_share, lambda k, dt: k * dt), "not with its root"),
        (family(right_share, lambda k, dt: k**2 * dt**0.5), "kappa squared"),
        (family(right_share, lambda k, dt: dt**0.5), "without kappa"),
        (family(right_share, sign=1.0), "moves away from the data"),
        (family(right_share, turn=-1.0), "drift f x is not turned round"),
        (family(right_share, turn=-1.0, sign=1.0), "whole bracket"),
    ],
    "volume": [
        (lambda *a: summary(climb(*a, move=False)), "never move"),
        (lambda *a: summary(climb(*a, at=1)), "not Euler's method"),
        (lambda *a: summary(climb(*a, again=False)), "by the probe again"),
        (lambda *a: summary(climb(*a, weigh=False)), "without the length"),
        (lambda *a: summary(-climb(*a)), "the sign"),
        (lambda *a: summary(climb(*a), 1.0), "not divided by the root"),
        (lambda *a: summary(climb(*a), len(a[3])), "divided by P"),
        (lambda *a: population(climb(*a)), "P - 1 belongs"),
        (lambda *a: step_errors(*a, 1), "errors of the steps are added"),
        (lambda *a: step_errors(*a, 2), "variances of the steps are added"),
        (lambda *a: variance_of(climb(*a)), "a root is missing"),
        (volume_heun, "Heun's method"),
        (lambda *a: summary(climb(*a))[0], "returned"),
    ],
    "diffusion_term": [
        (term_sign, "the sign is wrong"),
        (term_whole, "one half is missing"),
        (term_noise, "weight snr is missing"),
        (term_mean, "nats a sample are asked"),
        (term_left, "not the mean of both"),
        (term_over_snr, "over the snr"),
        (term_even, "evenly spaced"),
        (term_chain, "a chain's sum"),
        (lambda *a: term_chain(*a, end=0), "error at its less noisy end"),
        (term_in_snr, "another rule"),
        (term_root_snr, "root of the snr"),
        (lambda *a: None, "returned None"),
    ],
    "ode_walk": [
        (euler, "Euler's method"),
        (heun_old_point, "at the old point"),
        (heun_old_time, "at the old time"),
        (heun_added, "where their mean belongs"),
        (heun_from_guess, "added to the guess"),
        (heun_backwards, "in one direction"),
        (midpoint, "the midpoint method"),
        (lambda v, x, ts: heun(v, x, ts, lambda t, s: (s - t).abs()), "no sign"),
        (lambda v, x, ts: heun(v, x, ts.sort().values), "go up as well"),
        (lambda v, x, ts: heun(v, x, ts.sort().values.flip(0)), "go down as well"),
        (heun_even, "times are uneven"),
    ],
}
