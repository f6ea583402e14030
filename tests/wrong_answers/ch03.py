"""Wrong answers to chapter 3's exercises, and what the reader is told."""

from __future__ import annotations

import torch


def dsm(score, x0, alpha, sigma, eps):
    alpha, sigma = alpha[:, None], sigma[:, None]
    return score(alpha * x0 + sigma * eps), eps / sigma


def dsm_sign(score, x0, alpha, sigma, eps):
    s, target = dsm(score, x0, alpha, sigma, eps)
    return 0.5 * (s - target).square().sum(1).mean()


def dsm_undivided(score, x0, alpha, sigma, eps):
    s, _ = dsm(score, x0, alpha, sigma, eps)
    return 0.5 * (s + eps).square().sum(1).mean()


def dsm_clean(score, x0, alpha, sigma, eps):
    return 0.5 * (score(x0) + eps / sigma[:, None]).square().sum(1).mean()


def dsm_no_alpha(score, x0, alpha, sigma, eps):
    s = score(x0 + sigma[:, None] * eps)
    return 0.5 * (s + eps / sigma[:, None]).square().sum(1).mean()


def dsm_variance(score, x0, alpha, sigma, eps):
    s = score(alpha[:, None] * x0 + sigma[:, None] ** 2 * eps)
    return 0.5 * (s + eps / sigma[:, None]).square().sum(1).mean()


def dsm_mean(score, x0, alpha, sigma, eps):
    s, target = dsm(score, x0, alpha, sigma, eps)
    return 0.5 * (s + target).square().mean()


def dsm_whole(score, x0, alpha, sigma, eps):
    s, target = dsm(score, x0, alpha, sigma, eps)
    return (s + target).square().sum(1).mean()


def dsm_target_without_alpha(score, x0, alpha, sigma, eps):
    alpha, sigma = alpha[:, None], sigma[:, None]
    x_t = alpha * x0 + sigma * eps
    return 0.5 * (score(x_t) + (x_t - x0) / sigma**2).square().sum(1).mean()


def dsm_weighted(score, x0, alpha, sigma, eps):
    s, target = dsm(score, x0, alpha, sigma, eps)
    return 0.5 * (sigma[:, None] * (s + target)).square().sum(1).mean()


def dsm_right(score, x0, alpha, sigma, eps):
    s, target = dsm(score, x0, alpha, sigma, eps)
    return 0.5 * (s + target).square().sum(1).mean()


def pieces(score, x, probes, again=True, create_graph=True):
    """The score at x, and one value a probe and sample."""
    x = x.detach().requires_grad_()
    s = score(x)
    found = []
    for probe in probes:
        row = torch.autograd.grad(
            (s * probe).sum(), x, create_graph=create_graph, retain_graph=True
        )[0]
        found.append((row * probe if again else row).sum(1))
    return s, torch.stack(found)


def ism_summed(score, x, probes):
    s, traces = pieces(score, x, probes)
    return (0.5 * s.square().sum(1) + traces.sum(0)).mean()


def ism_once(score, x, probes):
    s, traces = pieces(score, x, probes, again=False)
    return (0.5 * s.square().sum(1) + traces.mean(0)).mean()


def ism_no_half(score, x, probes):
    s, traces = pieces(score, x, probes)
    return (s.square().sum(1) + traces.mean(0)).mean()


def ism_minus(score, x, probes):
    s, traces = pieces(score, x, probes)
    return (0.5 * s.square().sum(1) - traces.mean(0)).mean()


def ism_blind(score, x, probes):
    x = x.detach().requires_grad_()
    s = score(x)
    row = torch.autograd.grad(s.sum(), x, create_graph=True)[0]
    return (0.5 * s.square().sum(1) + row.sum(1)).mean()


def ism_frozen(score, x, probes):
    s, traces = pieces(score, x, probes, create_graph=False)
    return (0.5 * s.square().sum(1) + traces.mean(0)).mean()


def ism_sliced(score, x, probes):
    s, traces = pieces(score, x, probes)
    return (0.5 * (probes * s).sum(2).square().mean(0) + traces.mean(0)).mean()


def ism_right(score, x, probes):
    s, traces = pieces(score, x, probes)
    return (0.5 * s.square().sum(1) + traces.mean(0)).mean()


def rising():
    return torch.logspace(-1, 1.3, 10), 10, 0.1


def too_long():
    return torch.logspace(1.3, -1, 10), 50, 0.1


def stops_early():
    return torch.logspace(1.3, 0.3, 10), 10, 0.1


def too_bold():
    return torch.logspace(1.3, -1, 10), 10, 1.5


def starts_low():
    return torch.logspace(0, -1, 10), 10, 0.2


def cut_short():
    return torch.logspace(1.3, -1, 10), 10, 0.1


def sudden_drop():
    high = torch.linspace(8, 2, 46)
    return torch.cat([high, torch.tensor([1, 0.5, 0.25, 0.1])]), 2, 0.5


def list_of_steps():
    return torch.linspace(9, 0.5, 4), [40, 40, 10, 10], 0.5


def jacobian(score, x):
    x = x.detach().requires_grad_()
    s = score(x)
    rows = [
        torch.autograd.grad(s[:, i].sum(), x, retain_graph=True)[0]
        for i in range(x.shape[1])
    ]
    return torch.stack(rows, 1)


def from_jacobian(read):
    return lambda score, x: read(jacobian(score, x))


def one_pair_each(J):
    return (J - J.mT).triu().square().sum((1, 2)).sqrt()


def by_differences(score, x, h=1e-3):
    columns = [(score(x + h * e) - score(x - h * e)) / (2 * h) for e in unit_vectors(x)]
    J = torch.stack(columns, 2)
    return (J - J.mT).square().sum((1, 2)).sqrt()


def unit_vectors(x):
    return torch.eye(x.shape[1], dtype=x.dtype)


def ncsn_step(x, score_1, score_2, strength, step, z):
    score = score_1(x) - strength * score_2(x)
    return x + step / 2 * score + step**0.5 * z


def step_with(combine, noise=lambda d: (2 * d) ** 0.5):
    def answer(x, score_1, score_2, strength, step, z):
        score = combine(score_1(x), score_2(x), strength)
        return x + step * score + noise(step) * z

    return answer


def slope(energy, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x)[0]


def accept(energy, x, y, step, ratio=1.0, back=1.0, sign=-1.0, spread=4.0):
    def log_r(end, start):
        ahead = start + sign * step * slope(energy, start)
        return -(end - ahead).square().sum(1) / (spread * step)

    log_p = ratio * (energy(x) - energy(y))
    return log_p + back * (log_r(x, y) - log_r(y, x))


def one_slope(energy, x, y, step):
    push = step * slope(energy, x)
    back = (x - y + push).square().sum(1)
    ahead = (y - x + push).square().sum(1)
    return (energy(x) - energy(y) + (ahead - back) / (4 * step)).clamp(max=0).exp()


def probability(**how):
    return lambda *a: accept(*a, **how).clamp(max=0).exp()


WRONG = {
    "dsm_loss": [
        (dsm_sign, "sign of the target is wrong"),
        (dsm_undivided, "not divided by sigma"),
        (dsm_clean, "asked at the clean x0"),
        (dsm_no_alpha, "alpha is missing"),
        (dsm_variance, "sigma is squared where x_t is made"),
        (dsm_mean, "mean is taken over the elements"),
        (dsm_whole, "one half is missing"),
        (lambda *a: None, "returned None"),
        (dsm_target_without_alpha, "alpha is missing in the target"),
        (dsm_weighted, "weighed by sigma squared"),
        (lambda *a: dsm_right(*a).detach(), "does not reach the score's weights"),
        (lambda *a: dsm_right(*a).item(), "a tensor of shape ()"),
    ],
    "ism_estimate": [
        (ism_summed, "probes are summed"),
        (ism_once, "not multiplied by the probe again"),
        (ism_no_half, "one half before the squared score is missing"),
        (ism_minus, "sign of the trace is wrong"),
        (ism_blind, "without any probe"),
        (ism_frozen, "does not reach the network's weights"),
        (ism_sliced, "which is sliced score matching"),
        (lambda *a: ism_right(*a).detach(), "does not reach the network's weights"),
        (lambda *a: ism_right(*a).item(), "a tensor of shape ()"),
    ],
    "annealing_plan": [
        (rising, "do not fall"),
        (too_long, "more than 100 steps"),
        (stops_early, "last noise level is above"),
        (too_bold, "between 0 and 1"),
        (starts_low, "misses the weight"),
        (cut_short, "misses the weight"),
        (sudden_drop, "too wide"),
        (list_of_steps, "one whole number"),
        (lambda: None, "returned None"),
        (lambda: torch.linspace(9, 0.5, 50), "three things"),
    ],
    "and_not_step": [
        (step_with(lambda a, b, s: a + s * b), "which is AND"),
        (step_with(lambda a, b, s: a - b), "strength is missing"),
        (step_with(lambda a, b, s: s * (a - b)), "multiplies the whole difference"),
        (step_with(lambda a, b, s: s * a - b), "multiplies the first score"),
        (step_with(lambda a, b, s: -(a - s * b)), "walks downhill"),
        (step_with(lambda a, b, s: a - s * b, lambda d: d**0.5), "2 under the root"),
        (step_with(lambda a, b, s: a - s * b, lambda d: 0.0), "noise is missing"),
        (step_with(lambda a, b, s: b - s * a), "the scores are exchanged"),
        (step_with(lambda a, b, s: a - s * b, lambda d: 2 * d), "it is missing"),
        (ncsn_step, "the other paper's step"),
    ],
    "asymmetry": [
        (from_jacobian(lambda J: (J + J.mT).norm(dim=(1, 2))), "difference is asked"),
        (from_jacobian(lambda J: J.norm(dim=(1, 2))), "nothing is transposed"),
        (from_jacobian(lambda J: (J - J.mT).square().sum((1, 2))), "square root"),
        (from_jacobian(one_pair_each), "each pair of axes is counted once"),
        (from_jacobian(lambda J: J.diagonal(dim1=1, dim2=2).sum(1)), "the divergence"),
        (from_jacobian(lambda J: (J - J.mT).abs().sum((1, 2))), "absolute values"),
        (lambda score, x: jacobian(score, x) - jacobian(score, x).mT, "shape"),
        (by_differences, "not precise enough"),
    ],
    "accept_probability": [
        (probability(ratio=-1.0), "a high energy is unlikely"),
        (probability(back=0.0), "as if it were symmetric"),
        (probability(back=-1.0), "there and back are exchanged"),
        (probability(sign=1.0), "moves up the energy"),
        (probability(spread=2.0), "variance is taken to be step"),
        (lambda *a: accept(*a).exp(), "not cut at 1"),
        (one_slope, "gradient at x is used for the way back too"),
        (lambda *a: accept(*a).clamp(max=0), "the logarithm is returned"),
    ],
}
