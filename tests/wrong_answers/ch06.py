"""Wrong answers to chapter 6's exercises, and what the reader is told."""

from __future__ import annotations

import math

import torch


def eta_with(
    kept=None,
    fresh=torch.sqrt,
    root=torch.sqrt,
    power=2,
    noise=None,
    scale=torch.sqrt,
):
    def answer(x, eps, abar_t, abar_s, eta, z):
        a_t, a_s = abar_t[:, None], abar_s[:, None]
        x0 = (x - root(1 - a_t) * eps) / scale(a_t)
        var = eta**power * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        left = (1 - a_s - var).sqrt() if kept is None else kept(a_s, var)
        return a_s.sqrt() * x0 + left * eps + fresh(var) * (noise or z_of)(eps, z)

    return answer


def z_of(eps, z):
    return z


def eta_alone(x, eps, abar_t, abar_s, eta, z):
    a_t, a_s = abar_t[:, None], abar_s[:, None]
    x0 = (x - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    kept, tau = ((1 - eta**2) * (1 - a_s)).sqrt(), eta * (1 - a_s).sqrt()
    return a_s.sqrt() * x0 + kept * eps + tau * z


def line_with(steep, level=lambda h: 1 - (-h).exp(), span=1.0, ahead=0):
    def answer(x, m, d, at_t, at_s):
        h = span * ((at_s[0] / at_s[1]).log() - (at_t[0] / at_t[1]).log())
        flat = level(h)
        moved = flat * m + steep(h, flat) * d
        return at_s[1] / at_t[1] * x + at_s[ahead] * moved

    return answer


def line_in_alpha(x, m, d, at_t, at_s):
    h = (at_s[0] / at_s[1]).log() - (at_t[0] / at_t[1]).log()
    flat = 1 - (-h).exp()
    return at_s[0] / at_t[0] * x + at_s[0] * (flat * m + (h - flat) * d)


def line_scaled(by_x, by_x0):
    def answer(x, m, d, at_t, at_s):
        h = (at_s[0] / at_s[1]).log() - (at_t[0] / at_t[1]).log()
        flat = 1 - (-h).exp()
        return by_x(at_t, at_s) * x + by_x0(at_t, at_s) * (flat * m + (h - flat) * d)

    return answer


def sigmas(at_t, at_s):
    return at_s[1] / at_t[1]


def angle_of(a, b):
    return torch.cosine_similarity(a, b, dim=1).acos()[:, None]


def slerp_with(angle=angle_of, divide=True):
    def answer(a, b, u):
        theta = angle(a, b)
        path = ((1 - u) * theta).sin() * a + (u * theta).sin() * b
        return path / theta.sin() if divide else path

    return answer


def stretched(a, b, u):
    line = (1 - u) * a + u * b
    return line / line.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True)


def unit_slerp(a, b, u):
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    return slerp_with()(a, b, u)


def one_angle(a, b):
    return torch.acos((a * b).sum() / (a.norm() * b.norm()))


def quarter_turn(a, b, u):
    angle = torch.tensor(torch.pi / 2 * u)
    return angle.cos() * a + angle.sin() * b


def apart(a, b, u):
    lengths = [v.norm(dim=1, keepdim=True) for v in (a, b)]
    return unit_slerp(a, b, u) * ((1 - u) * lengths[0] + u * lengths[1])


def bare_angle(a, b):
    return (a * b).sum(1).acos()[:, None]


def target_with(denominator, ratio=lambda t, s: s[1] / t[1]):
    def answer(x_t, x_s, at_t, at_s):
        at_t, at_s = at_t[:, :, None], at_s[:, :, None]
        r = ratio(at_t, at_s)
        return (x_s - r * x_t) / denominator(at_t[0], at_s[0], r)

    return answer


def right_denominator(alpha_t, alpha_s, r):
    return alpha_s - r * alpha_t


def target_from(numerator):
    def answer(x_t, x_s, at_t, at_s):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t[:, :, None], at_s[:, :, None]
        r = sigma_s / sigma_t
        return numerator(x_t, x_s, r) / (alpha_s - r * alpha_t)

    return answer


def edm_skip(s, e, d):
    return d**2 / (s**2 + d**2)


def skip(s, e, d):
    return d**2 / ((s - e) ** 2 + d**2)


def out(s, e, d):
    return d * (s - e) / (s**2 + d**2).sqrt()


def model_with(skip=skip, out=out, swap=False):
    def answer(x, F, sigma, sigma_data, sigma_min):
        at = (sigma[:, None], sigma_min, sigma_data)
        x, F = (F, x) if swap else (x, F)
        return skip(*at) * x + out(*at) * F

    return answer


def model_of_scaled_x(x, F, sigma, sigma_data, sigma_min):
    seen = x / (sigma**2 + sigma_data**2).sqrt()[:, None]
    return model_with()(seen, F, sigma, sigma_data, sigma_min)


def pays(unit=5, whole=lambda h, n, b: h * n * b, saved=lambda x, y: x - y):
    return lambda h, n, b, x, y: whole(h, n, b) * unit / saved(x, y)


WRONG = {
    "eta_step": [
        (eta_with(kept=lambda a, v: (1 - a).sqrt()), "too much noise"),
        (eta_with(kept=lambda a, v: v.sqrt()), "direction term has tau"),
        (eta_with(fresh=lambda v: v), "tau squared stands before z"),
        (eta_with(power=1), "eta is not squared"),
        (eta_with(noise=lambda eps, z: eps), "fresh noise z belongs"),
        (eta_with(power=0), "the step for eta = 1"),
        (eta_with(fresh=lambda v: 0 * v), "fresh noise is missing"),
        (eta_with(root=lambda v: v), "missing where x0 is computed"),
        (eta_with(scale=torch.ones_like), "not divided by the root"),
        (eta_with(scale=lambda v: v), "and not by its root"),
        (eta_with(kept=lambda a, v: (1 - a).sqrt() - v.sqrt()), "not deviations"),
        (eta_alone, "two of its factors are missing"),
        (lambda *a: None, "returned None"),
    ],
    "line_step": [
        (line_with(lambda h, flat: 0 * h), "which is DDIM"),
        (line_with(lambda h, flat: h / 2 * flat), "as 2M does"),
        (line_with(lambda h, flat: h * flat), "end of the step"),
        (line_with(lambda h, flat: h**2 / 2), "exponential is left out"),
        (line_with(lambda h, flat: h - flat, span=2.0), "difference of log-SNR"),
        (line_with(lambda h, flat: h - flat, span=-1.0), "lambda rises"),
        (line_with(lambda h, flat: h - flat, ahead=1), "alpha_s belongs"),
        (line_with(lambda h, flat: h - flat, torch.expm1), "pull e^lambda_s out"),
        (line_in_alpha, "ratio of alphas"),
        (line_with(lambda h, flat: h + flat), "1 - e^-h has the wrong sign"),
        (line_with(lambda h, flat: flat - h), "weight of d has the wrong sign"),
        (line_scaled(sigmas, lambda t, s: 1.0), "alpha_s is missing"),
        (line_scaled(sigmas, lambda t, s: t[0]), "alpha_t stands where"),
        (line_scaled(lambda t, s: 1.0, lambda t, s: s[0]), "not scaled by the ratio"),
    ],
    "slerp": [
        (torch.lerp, "straight line between"),
        (lambda a, b, u: slerp_with()(b, a, u), "ends are exchanged"),
        (stretched, "not divided evenly"),
        (unit_slerp, "length 1"),
        (slerp_with(divide=False), "division by sin"),
        (slerp_with(lambda a, b: angle_of(a, b).cos()), "acos is missing"),
        (slerp_with(one_angle), "whole batch"),
        (slerp_with(bare_angle), "not divided by both lengths"),
        (quarter_turn, "not exactly orthogonal"),
        (apart, "interpolated apart"),
    ],
    "student_target": [
        (lambda x_t, x_s, t, s: x_s, "not where the step lands"),
        (lambda x_t, x_s, t, s: x_s / s[0][:, None], "noise is still in it"),
        (target_with(lambda a, b, r: b + r * a), "sign in the denominator"),
        (target_with(lambda a, b, r: b), "depends on it too"),
        (target_with(lambda a, b, r: 1.0), "denominator is missing"),
        (target_with(right_denominator, lambda t, s: (s[1] / t[1]) ** 2), "squared"),
        (target_with(right_denominator, lambda t, s: t[1] / s[1]), "NaN"),
        (target_with(lambda a, b, r: b - a), "missing in the denominator"),
        (target_with(lambda a, b, r: 1 / (b - r * a)), "multiplied by the denom"),
        (target_from(lambda x_t, x_s, r: x_s + r * x_t), "sign in the numerator"),
        (target_from(lambda x_t, x_s, r: x_s - x_t), "missing before x_t"),
    ],
    "consistency_f": [
        (model_with(edm_skip, lambda s, e, d: d * s / (s**2 + d**2).sqrt()), "EDM's"),
        (model_with(edm_skip), "left out of c_skip"),
        (model_with(out=lambda s, e, d: d * s / (s**2 + d**2).sqrt()), "of c_out"),
        (model_with(out=lambda s, e, d: d * (s - e) / (s**2 + d**2)), "square root"),
        (model_with(swap=True), "each other's coefficient"),
        (model_with(skip=lambda s, e, d: d / ((s - e) ** 2 + d)), "not squared"),
        (model_with(out=lambda s, e, d: 1 - skip(s, e, d)), "taken as 1 - c_skip"),
        (model_with(out=lambda s, e, d: d / (s**2 + d**2).sqrt()), "F speaks"),
        (model_with(out=lambda s, e, d: -out(s, e, d)), "wrong sign"),
        (model_of_scaled_x, "what the network sees"),
    ],
    "pays_after": [
        (pays(unit=3), "three passes"),
        (pays(unit=4), "four passes"),
        (pays(whole=lambda h, n, b: h * n), "batch is left out"),
        (pays(whole=lambda h, n, b: n * b), "only one halving"),
        (pays(saved=lambda x, y: x), "still costs something"),
        (lambda *a: 1 / pays()(*a), "upside down"),
        (pays(saved=lambda x, y: 1), "what is spent"),
        (pays(saved=lambda x, y: x / y), "ratio of the costs"),
        (pays(whole=lambda h, n, b: 2**h * n * b), "2 ** halvings"),
        (lambda *a: math.ceil(pays()(*a)), "rounded up"),
        (lambda *a: int(pays()(*a)), "rounded down"),
        (lambda *a: round(pays()(*a)), "rounded: the number"),
    ],
}
