"""Wrong answers to chapter 7's exercises, and what the reader is told."""

from __future__ import annotations

import torch


def pieces(x, eps, alpha, sigma):
    total = alpha + sigma
    x0 = (x - sigma[:, None] * eps) / alpha[:, None]
    return x / total[:, None], sigma / total, x0


def flow_sign(x, eps, alpha, sigma):
    point, t, x0 = pieces(x, eps, alpha, sigma)
    return point, t, x0 - eps


def flow_backwards(x, eps, alpha, sigma):
    point, t, x0 = pieces(x, eps, alpha, sigma)
    return point, 1 - t, eps - x0


def flow_sigma(x, eps, alpha, sigma):
    point, _, x0 = pieces(x, eps, alpha, sigma)
    return point, sigma, eps - x0


def flow_powers(x, eps, alpha, sigma):
    point, _, x0 = pieces(x, eps, alpha, sigma)
    return point, sigma**2 / (alpha**2 + sigma**2), eps - x0


def flow_unscaled(x, eps, alpha, sigma):
    _, t, x0 = pieces(x, eps, alpha, sigma)
    return x, t, eps - x0


def flow_hypot(x, eps, alpha, sigma):
    total, x0 = torch.hypot(alpha, sigma), pieces(x, eps, alpha, sigma)[2]
    return x / total[:, None], sigma / total, eps - x0


def flow_v(x, eps, alpha, sigma):
    point, t, x0 = pieces(x, eps, alpha, sigma)
    return point, t, alpha[:, None] * eps - sigma[:, None] * x0


def flow_undivided(x, eps, alpha, sigma):
    point, t, _ = pieces(x, eps, alpha, sigma)
    return point, t, eps - (x - sigma[:, None] * eps)


def flow_unweighted(x, eps, alpha, sigma):
    point, t, _ = pieces(x, eps, alpha, sigma)
    return point, t, eps - (point - t[:, None] * eps)


def flow_point(x, eps, alpha, sigma):
    point, t, _ = pieces(x, eps, alpha, sigma)
    return point, t, eps - point


def flow_noisy(x, eps, alpha, sigma):
    point, t, _ = pieces(x, eps, alpha, sigma)
    return point, t, eps - x


def flow_slow(x, eps, alpha, sigma):
    point, t, x0 = pieces(x, eps, alpha, sigma)
    return point, t, (eps - x0) / (alpha + sigma)[:, None]


def flow_alpha(x, eps, alpha, sigma):
    _, t, x0 = pieces(x, eps, alpha, sigma)
    return x / alpha[:, None], t, eps - x0


def flow_ratio(x, eps, alpha, sigma):
    point, _, x0 = pieces(x, eps, alpha, sigma)
    return point, sigma / alpha, eps - x0


def parts(velocities, times):
    h = -times.diff()[:, None, None]
    whole = (h * velocities).sum(0)
    return h, whole, (velocities[0] - whole).norm(dim=1)


def bend_even(velocities, times):
    whole = velocities.mean(0)
    S = (whole - velocities).square().sum(2).mean(0)
    return S, (velocities[0] - whole).norm(dim=1)


def bend_unweighted(velocities, times):
    _, whole, error = parts(velocities, times)
    return (whole - velocities).square().sum(2).mean(0), error


def bend_sign(velocities, times):
    h, whole, error = parts(velocities, times)
    return (h * (-whole - velocities).square()).sum((0, 2)), error


def bend_mean(velocities, times):
    h, whole, error = parts(velocities, times)
    return (h * (whole - velocities).square()).sum(0).mean(1), error


def bend_squared(velocities, times):
    h, whole, error = parts(velocities, times)
    return (h * (whole - velocities).square()).sum((0, 2)), error**2


def bend_last(velocities, times):
    h, whole, _ = parts(velocities, times)
    S = (h * (whole - velocities).square()).sum((0, 2))
    return S, (velocities[-1] - whole).norm(dim=1)


def bend_unsquared(velocities, times):
    h, whole, error = parts(velocities, times)
    return (h[..., 0] * (whole - velocities).norm(dim=2)).sum(0), error


def bend_added(velocities, times):
    _, whole, error = parts(velocities, times)
    return (whole - velocities).square().sum((0, 2)), error


def bend_lengths(velocities, times):
    h, whole, error = parts(velocities, times)
    return (h * (whole - velocities)).square().sum((0, 2)), error


def bend_total(velocities, times):
    h, whole = parts(velocities, times)[0], velocities.sum(0)
    S = (h * (whole - velocities).square()).sum((0, 2))
    return S, (velocities[0] - whole).norm(dim=1)


def bend_average(velocities, times):
    h, whole = parts(velocities, times)[0], velocities.mean(0)
    S = (h * (whole - velocities).square()).sum((0, 2))
    return S, (velocities[0] - whole).norm(dim=1)


def bend_short(velocities, times):
    h, whole, _ = parts(velocities, times)
    S = (h * (whole - velocities).square()).sum((0, 2))
    return S, (h[0] * velocities[0] - whole).norm(dim=1)


def scaled(cost, temperature, rounds, rows=True, columns=True, ones=False, sign=-1):
    P = torch.exp(sign * cost / temperature)
    n, m = (1, 1) if ones else cost.shape
    for _ in range(rounds):
        if rows:
            P = P / P.sum(1, keepdim=True) / n
        if columns:
            P = P / P.sum(0, keepdim=True) / m
    return P


def columns_first(cost, temperature, rounds):
    P, (n, m) = torch.exp(-cost / temperature), cost.shape
    for _ in range(rounds):
        P = P / P.sum(0, keepdim=True) / m
        P = P / P.sum(1, keepdim=True) / n
    return P


def divided_at_the_end(cost, temperature, rounds):
    log_P = -cost / temperature
    for _ in range(rounds):
        log_P = log_P - log_P.logsumexp(1, keepdim=True)
        log_P = log_P - log_P.logsumexp(0, keepdim=True)
    return log_P.exp() / len(cost)


def scaled_at_once(cost, temperature, rounds):
    log_P, (n, m) = -cost / temperature, cost.shape
    for _ in range(rounds):
        rows, columns = log_P.exp().sum(1, keepdim=True), log_P.exp().sum(0)
        log_P = log_P - (n * rows).log() - (m * columns).log()
    return log_P.exp()


def clamped(cost, temperature, rounds):
    P, (n, m) = torch.exp(-cost / temperature).clamp(min=1e-30), cost.shape
    for _ in range(rounds):
        P = P / P.sum(1, keepdim=True) / n
        P = P / P.sum(0, keepdim=True) / m
    return P


def wide(t):
    return t[:, None, None, None]


def bridge(look, target=lambda x0, x1: x1 - x0, told=lambda t: t):
    def answer(model, x0, x1, t):
        return (model(look(x0, x1, wide(t)), told(t)) - target(x0, x1)).square().mean()

    return answer


def line(x0, x1, s):
    return (1 - s) * x0 + s * x1


def bridge_summed(model, x0, x1, t):
    return (model(line(x0, x1, wide(t)), t) - (x1 - x0)).square().sum()


def bridge_per_sample(model, x0, x1, t):
    missed = model(line(x0, x1, wide(t)), t) - (x1 - x0)
    return missed.square().flatten(1).sum(1).mean()


def bridge_remaining(model, x0, x1, t):
    x_t = line(x0, x1, wide(t))
    return (model(x_t, t) - (x1 - x_t)).square().mean()


def bridge_absolute(model, x0, x1, t):
    return (model(line(x0, x1, wide(t)), t) - (x1 - x0)).abs().mean()


def cost_of(x0, A, y, width):
    return (x0 @ A.T - y).square().sum() / (2 * width**2)


def stepped(cost=cost_of, sign=-1.0):
    def answer(solve, x1, A, y, width, rate):
        x1 = x1.detach().requires_grad_()
        (slope,) = torch.autograd.grad(cost(solve(x1), A, y, width), x1)
        return (x1 + sign * rate * slope).detach()

    return answer


def steer_end(solve, x1, A, y, width, rate):
    x0 = solve(x1).detach().requires_grad_()
    (slope,) = torch.autograd.grad(cost_of(x0, A, y, width), x0)
    return (x0 - rate * slope).detach()


def steer_without_solve(solve, x1, A, y, width, rate):
    x0 = solve(x1).detach().requires_grad_()
    (slope,) = torch.autograd.grad(cost_of(x0, A, y, width), x0)
    return x1 - rate * slope


def steer_from_end(solve, x1, A, y, width, rate):
    x1 = x1.detach().requires_grad_()
    x0 = solve(x1)
    (slope,) = torch.autograd.grad(cost_of(x0, A, y, width), x1)
    return (x0 - rate * slope).detach()


def steer_adds_up(solve, x1, A, y, width, rate):
    x1.requires_grad_()
    cost_of(solve(x1), A, y, width).backward()
    return (x1 - rate * x1.grad).detach()


def steer_kept(solve, x1, A, y, width, rate):
    x1 = x1.detach().requires_grad_()
    (slope,) = torch.autograd.grad(cost_of(solve(x1), A, y, width), x1)
    return x1 - rate * slope


WRONG = {
    "to_flow": [
        (flow_sign, "in which data stand at time 1"),
        (flow_backwards, "counted from noise to data"),
        (flow_sigma, "the time is sigma itself"),
        (flow_powers, "a ratio of powers"),
        (flow_unscaled, "not scaled"),
        (flow_hypot, "squares of the weights"),
        (flow_v, "the velocity is v"),
        (flow_undivided, "not divided by alpha"),
        (flow_unweighted, "not divided by 1 - tau"),
        (flow_point, "eps minus the point"),
        (flow_noisy, "the velocity is eps - x;"),
        (flow_slow, "scaled with the point"),
        (flow_alpha, "by alpha alone"),
        (flow_ratio, "sigma / alpha"),
        (lambda *a: None, "returned None"),
    ],
    "bend": [
        (bend_even, "equally long"),
        (bend_unweighted, "without their lengths"),
        (bend_sign, "wrong sign"),
        (bend_mean, "mean over the coordinates"),
        (bend_squared, "the error is squared"),
        (bend_last, "takes the last velocity"),
        (bend_unsquared, "S is not squared"),
        (bend_added, "S is a sum over the steps"),
        (bend_lengths, "the lengths in S are squared"),
        (bend_total, "sum of the velocities"),
        (bend_average, "plain mean of the velocities"),
        (bend_short, "the first step's length"),
    ],
    "sinkhorn": [
        (lambda c, t, r: scaled(c, t, r, columns=False), "only the rows"),
        (lambda c, t, r: scaled(c, t, r, rows=False), "only the columns"),
        (columns_first, "before the rows"),
        (lambda c, t, r: scaled(c, t, r, ones=True), "sum to 1, so that"),
        (lambda c, t, r: scaled(c, t, r, sign=1), "dearest pairs"),
        (lambda c, t, r: scaled(c, 1 / t, r), "multiplied by the temperature"),
        (lambda c, t, r: scaled(c, 1.0, r), "temperature is left out"),
        (scaled, "underflows"),
        (clamped, "underflows"),
        (divided_at_the_end, "the columns sum to 1/N"),
        (scaled_at_once, "scaled at once"),
    ],
    "bridge_loss": [
        (bridge(lambda x0, x1, s: x1), "shown x1"),
        (bridge(lambda x0, x1, s: x0), "shown x0"),
        (bridge(lambda x0, x1, s: line(x1, x0, s)), "the path runs the other way"),
        (bridge(line, lambda x0, x1: x0 - x1), "sign of the velocity"),
        (
            bridge(lambda x0, x1, s: line(x1, x0, s), lambda x0, x1: x0 - x1),
            "both the path and the velocity",
        ),
        (bridge(line, told=lambda t: 1 - t), "told 1 - t"),
        (bridge(line, lambda x0, x1: x0), "the target is x0"),
        (bridge(line, lambda x0, x1: x1), "the target is x1,"),
        (bridge_remaining, "the way that is left"),
        (bridge_absolute, "not squared"),
        (bridge(lambda x0, x1, s: x0 + s * x1), "does not fade"),
        (bridge_summed, "the squares are summed"),
        (bridge_per_sample, "squares of a sample are summed"),
        (lambda *a: bridge(line)(*a).detach(), "does not reach the model"),
        (lambda *a: bridge(line)(*a).item(), "a tensor of shape ()"),
        (bridge(line), "not for points"),
    ],
    "steer": [
        (stepped(sign=1.0), "uphill"),
        (stepped(lambda x, *a: cost_of(x, *a) / len(x)), "averaged over the batch"),
        (
            stepped(lambda x, A, y, w: (x @ A.T - y).square().sum() / w**2),
            "one half",
        ),
        (
            stepped(lambda x, A, y, w: (x @ A.T - y).square().sum() / (2 * w)),
            "the width is not squared",
        ),
        (
            stepped(lambda x, A, y, w: (x @ A.T - y).square().sum() / 2),
            "the width is left out",
        ),
        (steer_without_solve, "stops at the end of the solve"),
        (steer_end, "the end x0 is moved"),
        (lambda solve, *a: stepped()(lambda x: x, *a), "without being solved"),
        (lambda solve, *a: solve(stepped()(solve, *a)), "the end of the solve"),
        (steer_kept, "still carries a gradient"),
        (steer_adds_up, "adds to x1.grad"),
        (steer_from_end, "taken from the end x0"),
        (lambda s, x1, *a: stepped()(s, x1, *a) - x1, "only the step"),
        (lambda *a: stepped()(*a[:-1], 1.0), "the rate is left out"),
    ],
}
