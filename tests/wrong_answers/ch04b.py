"""Wrong answers to chapter 4b's exercises, and what the reader is told."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import softplus


def bound(width=torch.exp, sign=-1.0, half=0.5, one=1.0, constant=True, detach=False):
    def answer(x, mean, log_std, eps, decode, std):
        if detach:
            mean, log_std = mean.detach(), log_std.detach()
        z = mean + width(log_std) * eps
        fit = -0.5 * ((x - decode(z)) / std).square().sum(1)
        if constant:
            fit = fit - x.shape[1] * (std.log() + 0.5 * math.log(2 * math.pi))
        squares = mean.square() + (2 * log_std).exp() - one - 2 * log_std
        return fit + sign * half * squares.sum(1)

    return answer


def fitted(density):
    """A bound with another log-density of x: density(x, decoded, std, D)."""

    def answer(x, mean, log_std, eps, decode, std):
        seen = decode(mean + log_std.exp() * eps)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
        return density(x, seen, std, x.shape[1]) - kl.sum(1)

    return answer


def error(x, seen):
    return (x - seen).square()


def constant(std, dim):
    return dim * (std.log() + 0.5 * math.log(2 * math.pi))


def log_variance(x, mean, log_std, eps, decode, std):
    return bound()(x, mean, log_std / 2, eps, decode, std)


def decoder_noise(x, mean, log_std, eps, decode, std):
    return bound(width=lambda _: std)(x, mean, log_std, eps, decode, std)


def couple(scale_back=-1.0, det_back=-1.0, count_all=False, keep=True, peek=False):
    def answer(v, mask, net, inverse):
        a, c = net(v if peek else v * mask).chunk(2, dim=1)
        moved = (v - c) * (scale_back * a).exp() if inverse else v * a.exp() + c
        sign = det_back if inverse else 1.0
        log_det = sign * (a if count_all else (1 - mask) * a).sum(1)
        return (mask * v if keep else 0) + (1 - mask) * moved, log_det

    return answer


def shift_stretched(v, mask, net, inverse):
    a, c = net(v * mask).chunk(2, dim=1)
    moved = v * (-a).exp() - c if inverse else (v + c) * a.exp()
    log_det = (-1.0 if inverse else 1.0) * ((1 - mask) * a).sum(1)
    return mask * v + (1 - mask) * moved, log_det


def wrong_order(v, mask, net, inverse):
    a, c = net(v * mask).chunk(2, dim=1)
    moved = v * (-a).exp() - c if inverse else v * a.exp() + c
    log_det = (-1.0 if inverse else 1.0) * ((1 - mask) * a).sum(1)
    return mask * v + (1 - mask) * moved, log_det


def variant(seen=lambda v, m: v * m, stretch=torch.exp, rest=lambda m: 1 - m, det=None):
    def answer(v, mask, net, inverse):
        a, c = net(seen(v, mask)).chunk(2, dim=1)
        moved = (v - c) / stretch(a) if inverse else v * stretch(a) + c
        logs = det(a) if det else stretch(a).abs().log()
        log_det = (-1.0 if inverse else 1.0) * ((1 - mask) * logs).sum(1)
        return mask * v + rest(mask) * moved, log_det

    return answer


def other_mask(v, mask, net, inverse):
    return couple()(v, 1 - mask, net, inverse)


def judge(real, fake):
    return softplus(-real).mean() + softplus(fake).mean()


def through_sigmoid(real, fake):
    d, g = real.sigmoid(), fake.sigmoid()
    return -d.log().mean() - (1 - g).log().mean(), -g.log().mean()


def all_logits(real, fake):
    together = torch.cat([softplus(-real), softplus(fake)])
    return together.mean(), softplus(-fake).mean()


def numbers(real, fake):
    return judge(real, fake).item(), softplus(-fake).mean().item()


def slope(energy, x, graph=False):
    x = x if graph else x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x, create_graph=graph)[0]


def contrast(push=-1.0, spread=lambda s: (2 * s) ** 0.5, read=None, detach_loss=False):
    def answer(energy, real, chains, step, noise):
        x = chains
        for z in noise:
            x = x + push * step * slope(energy, x) + spread(step) * z
        at_real, at_fake = energy(real), energy(x.detach())
        loss = read(at_real, at_fake) if read else at_real.mean() - at_fake.mean()
        return (loss.detach() if detach_loss else loss), x.detach()

    return answer


def through_the_walk(energy, real, chains, step, noise):
    x = chains.clone().requires_grad_()
    for z in noise:
        x = x - step * slope(energy, x, graph=True) + (2 * step) ** 0.5 * z
    return energy(real).mean() - energy(x).mean(), x


def through_the_walk_cut(energy, real, chains, step, noise):
    loss, x = through_the_walk(energy, real, chains, step, noise)
    return loss, x.detach()


def slope_once(energy, real, chains, step, noise):
    x, down = chains, slope(energy, chains)
    for z in noise:
        x = x - step * down + (2 * step) ** 0.5 * z
    return energy(real).mean() - energy(x).mean(), x


def slope_of_mean(energy, real, chains, step, noise):
    return contrast(push=-1 / len(chains))(energy, real, chains, step, noise)


def last_step_left_out(energy, real, chains, step, noise):
    return contrast()(energy, real, chains, step, noise[:-1])


def chains_as_they_were(energy, real, chains, step, noise):
    return contrast()(energy, real, chains, step, noise)[0], chains


def by_backward(energy, real, chains, step, noise):
    x = chains
    for z in noise:
        x = x.detach().requires_grad_()
        energy(x).sum().backward()
        x = x - step * x.grad + (2 * step) ** 0.5 * z
    x = x.detach()
    return energy(real).mean() - energy(x).mean(), x


def at_the_start(energy, real, chains, step, noise):
    _, end = contrast()(energy, real, chains, step, noise)
    return energy(real).mean() - energy(chains).mean(), end


WRONG = {
    "elbo": [
        (bound(sign=1.0), "sign of the KL term is wrong"),
        (bound(sign=0.0), "the KL term is missing"),
        (bound(width=lambda s: s), "an exponential is missing"),
        (bound(width=lambda s: (s / 2).exp()), "log of a variance where z is made"),
        (bound(width=lambda s: (2 * s).exp()), "scaled by the variance"),
        (bound(width=lambda s: 0 * s), "the noise is not used"),
        (bound(width=torch.ones_like), "not scaled by the encoder's width"),
        (bound(half=1.0), "lacks its factor one half"),
        (bound(one=0.0), "lacks the 1"),
        (bound(constant=False), "not normalised"),
        (lambda *a: -bound()(*a), "the negative of the bound"),
        (lambda *a: bound()(*a).mean(), "shape"),
        (bound(detach=True), "does not reach mean and log_std"),
        (log_variance, "in z and in the KL term"),
        (decoder_noise, "scaled by the decoder's std"),
        (fitted(lambda x, y, s, d: -0.5 * error(x, y).sum(1) / s
                - constant(s.sqrt(), d)),
         "taken for a variance: it is not squared"),
        (fitted(lambda x, y, s, d: -error(x, y).sum(1) / s**2 - constant(s, d)),
         "distance lacks its factor one half"),
        (fitted(lambda x, y, s, d: -0.5 * error(x, y).mean(1) / s**2 - constant(s, d)),
         "mean over the elements of x"),
        (fitted(lambda x, y, s, d: -0.5 * error(x, y).sum(1) - constant(s, d)),
         "not divided by the square of std"),
        (fitted(lambda x, y, s, d: -error(x, y).sum(1)), "plain squared error"),
        (fitted(lambda x, y, s, d: -0.5 * error(x, y).sum(1) / s**2
                - constant(1 / s, d)),
         "logarithm of std has the wrong sign"),
        (lambda *a: None, "returned None"),
    ],
    "coupling": [
        (couple(scale_back=1.0), "leaves the stretch as it was"),
        (couple(det_back=1.0), "log-determinant of the forward map"),
        (couple(count_all=True), "counts the coordinates that stay"),
        (couple(keep=False), "kept coordinates are lost"),
        (couple(peek=True), "network sees all of v"),
        (shift_stretched, "shift is stretched too"),
        (wrong_order, "divides before it takes off the shift"),
        (other_mask, "mask is turned round"),
        (lambda v, m, n, i: couple()(v, m, n, not i), "direction is exchanged"),
        (variant(seen=lambda v, m: v * (1 - m)), "network sees what moves"),
        (variant(rest=lambda m: 1), "1 - b is missing"),
        (variant(stretch=lambda a: a), "taken for the stretch itself"),
        (variant(det=torch.exp), "adds up stretches"),
        (lambda *a: couple()(*a)[0], "returned"),
    ],
    "gan_losses": [
        (lambda r, f: (softplus(r).mean() + softplus(-f).mean(),
                       softplus(-f).mean()), "labels are exchanged"),
        (lambda r, f: (judge(r, f) / 2, softplus(-f).mean()), "terms are averaged"),
        (lambda r, f: (judge(r, f), -softplus(f).mean()), "which saturates"),
        (lambda r, f: (judge(r, f), softplus(f).mean()), "helps its judge"),
        (lambda r, f: (-judge(r, f), softplus(-f).mean()), "grow worse"),
        (lambda r, f: (f.mean() - r.mean(), -f.mean()), "without a sigmoid"),
        (lambda r, f: (softplus(-f).mean(), judge(r, f)), "losses are exchanged"),
        (lambda r, f: (judge(r.sigmoid(), f.sigmoid()),
                       softplus(-f.sigmoid()).mean()), "second sigmoid"),
        (through_sigmoid, "overflows for large ones"),
        (all_logits, "one mean over all logits"),
        (lambda r, f: (softplus(-r).mean() - softplus(f).mean(),
                       softplus(-f).mean()), "samples' term of the judge"),
        (lambda r, f: (judge(r, f), -judge(r, f)), "judge's with its sign turned"),
        (numbers, "no gradient, or another one"),
    ],
    "ebm_loss": [
        (contrast(push=1.0), "walk up the energy"),
        (contrast(spread=lambda s: s**0.5), "2 under the root"),
        (contrast(spread=lambda s: 2 * s), "root of the noise's size"),
        (contrast(spread=lambda s: 0 * s), "this is gradient descent"),
        (contrast(push=-0.5, spread=lambda s: s**0.5), "other paper's step"),
        (contrast(read=lambda r, f: f.mean() - r.mean()), "raises the energy of data"),
        (contrast(read=lambda r, f: r.mean() + f.mean()), "are added"),
        (contrast(read=lambda r, f: r.sum() - f.sum()), "sums over the batches"),
        (at_the_start, "where the chains started"),
        (through_the_walk, "still hang on the graph"),
        (through_the_walk_cut, "not through the walk"),
        (contrast(spread=lambda s: 1.0), "noise is not scaled by the step"),
        (contrast(push=-0.5), "gradient is halved"),
        (slope_of_mean, "gradient is that of the mean energy"),
        (slope_once, "gradient is taken once"),
        (last_step_left_out, "last step is not taken"),
        (chains_as_they_were, "come back where they started"),
        (by_backward, "leaves gradients"),
        (contrast(detach_loss=True), "gradient in the energy's weights"),
    ],
}  # fmt: skip
