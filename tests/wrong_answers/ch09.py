"""Wrong answers to chapter 9's exercises, and what the reader is told."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy


def guide_scale_only(u, c, amount, convention):
    return torch.lerp(u, c, amount)


def guide_w_only(u, c, amount, convention):
    return (1 + amount) * c - amount * u


def guide_exchanged(u, c, amount, convention):
    scale = amount + 1 if convention == "scale" else amount
    return torch.lerp(u, c, scale)


def guide_backwards(u, c, amount, convention):
    scale = amount if convention == "scale" else amount + 1
    return torch.lerp(c, u, scale)


def guide_from_c(u, c, amount, convention):
    scale = amount if convention == "scale" else amount + 1
    return c + scale * (c - u)


def guide_inexact(u, c, amount, convention):
    scale = amount if convention == "scale" else amount + 1
    return u + scale * (c - u)


def guide_below_one(u, c, amount, convention):
    scale = amount if convention == "scale" else amount - 1
    return torch.lerp(u, c, scale)


def guide_one_minus(u, c, amount, convention):
    scale = amount if convention == "scale" else 1 - amount
    return torch.lerp(u, c, scale)


def guide_push_only(u, c, amount, convention):
    scale = amount if convention == "scale" else amount + 1
    return scale * (c - u)


def gaussians(scale, var_c, var_u):
    ode = var_c**scale * var_u ** (1 - scale)
    return ode, 1 / (scale / var_c + (1 - scale) / var_u)


def gaussians_as_w(scale, var_c, var_u):
    return gaussians(1 + scale, var_c, var_u)


def gaussians_equal(scale, var_c, var_u):
    tilted = gaussians(scale, var_c, var_u)[1]
    return tilted, tilted


def gaussians_squared(scale, var_c, var_u):
    ode, tilted = gaussians(scale, var_c, var_u)
    return ode**2, tilted


def gaussians_stds(scale, var_c, var_u):
    ode, tilted = gaussians(scale, var_c, var_u)
    return ode**0.5, tilted**0.5


def gaussians_arithmetic(scale, var_c, var_u):
    return gaussians(scale, var_c, var_u)[0], scale * var_c + (1 - scale) * var_u


def gaussians_turned(scale, var_c, var_u):
    return gaussians(1 - scale, var_c, var_u)[0], gaussians(scale, var_c, var_u)[1]


def gaussians_wrong_sign(scale, var_c, var_u):
    return var_c**scale * var_u ** (scale - 1), gaussians(scale, var_c, var_u)[1]


def gaussians_mixed(scale, var_c, var_u):
    return scale * var_c + (1 - scale) * var_u, gaussians(scale, var_c, var_u)[1]


def gaussians_only_c(scale, var_c, var_u):
    return gaussians(scale, var_c, var_u)[0], var_c / scale


def gaussians_multiplied(scale, var_c, var_u):
    tilted = 1 / (scale / var_c + (scale - 1) / var_u)
    return gaussians(scale, var_c, var_u)[0], tilted


def gaussians_power_one(scale, var_c, var_u):
    return gaussians(scale, var_c, var_u)[0], 1 / (scale / var_c + 1 / var_u)


def inside(level, low, high):
    return ((level > low) & (level <= high))[:, None]


def interval_to_u(u, c, level, scale, low, high):
    return torch.where(inside(level, low, high), torch.lerp(u, c, scale), u)


def interval_outside(u, c, level, scale, low, high):
    return torch.where(inside(level, low, high), c, torch.lerp(u, c, scale))


def interval_closed(u, c, level, scale, low, high):
    test = ((level >= low) & (level <= high))[:, None]
    return torch.where(test, torch.lerp(u, c, scale), c)


def interval_one_sided(u, c, level, scale, low, high):
    return torch.where((level > low)[:, None], torch.lerp(u, c, scale), c)


def interval_of_batch(u, c, level, scale, low, high):
    any_inside = bool(inside(level, low, high).any())
    return torch.lerp(u, c, scale if any_inside else 1.0)


def interval_nothing_outside(u, c, level, scale, low, high):
    return inside(level, low, high) * torch.lerp(u, c, scale)


def interval_turned(u, c, level, scale, low, high):
    return torch.where(inside(level, low, high), torch.lerp(c, u, scale), c)


def interval_joined_by_or(u, c, level, scale, low, high):
    test = ((level > low) | (level <= high))[:, None]
    return torch.where(test, torch.lerp(u, c, scale), c)


def interval_all_at_once(u, c, level, scale, low, high):
    all_inside = bool(inside(level, low, high).all())
    return torch.lerp(u, c, scale if all_inside else 1.0)


def noised(x0, alpha, sigma, eps):
    return alpha[:, None] * x0 + sigma[:, None] * eps


def loss_clean(classifier, x0, label, t, alpha, sigma, eps):
    return cross_entropy(classifier(x0, t), label)


def loss_without_time(classifier, x0, label, t, alpha, sigma, eps):
    x_t = noised(x0, alpha, sigma, eps)
    return cross_entropy(classifier(x_t, torch.zeros_like(t)), label)


def loss_variance(classifier, x0, label, t, alpha, sigma, eps):
    return cross_entropy(classifier(noised(x0, alpha, sigma**2, eps), t), label)


def loss_without_noise(classifier, x0, label, t, alpha, sigma, eps):
    return cross_entropy(classifier(alpha[:, None] * x0, t), label)


def loss_noise_alone(classifier, x0, label, t, alpha, sigma, eps):
    return cross_entropy(classifier(eps, t), label)


def loss_one_level(classifier, x0, label, t, alpha, sigma, eps):
    return cross_entropy(classifier(alpha[0] * x0 + sigma[0] * eps, t), label)


def loss_rooted(classifier, x0, label, t, alpha, sigma, eps):
    x_t = noised(x0, alpha.sqrt(), (1 - alpha).sqrt(), eps)
    return cross_entropy(classifier(x_t, t), label)


def loss_over_batch(classifier, x0, label, t, alpha, sigma, eps):
    logits = classifier(noised(x0, alpha, sigma, eps), t)
    return -logits.log_softmax(0)[range(len(label)), label].mean()


def loss_twice_softmax(classifier, x0, label, t, alpha, sigma, eps):
    logits = classifier(noised(x0, alpha, sigma, eps), t)
    return cross_entropy(logits.softmax(1), label)


def loss_logit(classifier, x0, label, t, alpha, sigma, eps):
    logits = classifier(noised(x0, alpha, sigma, eps), t)
    return -logits[range(len(label)), label].mean()


def loss_detached(classifier, x0, label, t, alpha, sigma, eps):
    logits = classifier(noised(x0, alpha, sigma, eps), t)
    return cross_entropy(logits, label).detach()


def fused(answers, lefts, weight, shown, counted):
    total = answers.new_zeros(*answers.shape[1:3], lefts[-1] + len(weight))
    count = answers.new_zeros(lefts[-1] + len(weight))
    for left, answer in zip(lefts, answers, strict=True):
        total[..., left : left + len(weight)] += shown * answer
        count[left : left + len(weight)] += counted
    return total, count


def fuse_unweighted(answers, lefts, weight):
    total, count = fused(answers, lefts, weight, 1.0, 1.0)
    return total / count


def fuse_by_number(answers, lefts, weight):
    total, count = fused(answers, lefts, weight, weight, 1.0)
    return total / count


def fuse_summed(answers, lefts, weight):
    return fused(answers, lefts, weight, weight, 1.0)[0]


def fuse_squared(answers, lefts, weight):
    total, count = fused(answers, lefts, weight, weight**2, weight**2)
    return total / count


def fuse_overwritten(answers, lefts, weight):
    out = answers.new_zeros(*answers.shape[1:3], lefts[-1] + len(weight))
    for left, answer in zip(lefts, answers, strict=True):
        out[..., left : left + len(weight)] = answer
    return out


def fuse_weights_below(answers, lefts, weight):
    total, count = fused(answers, lefts, weight, 1.0, weight)
    return total / count


def fuse_one_divisor(answers, lefts, weight):
    total, _ = fused(answers, lefts, weight, weight, 1.0)
    return total / (len(lefts) * weight.sum())


def fuse_halves(answers, lefts, weight):
    size = len(weight)
    out = answers.new_zeros(*answers.shape[1:3], lefts[-1] + size)
    seen = [False] * out.shape[-1]
    for left, answer in zip(lefts, answers, strict=True):
        for p in range(size):
            column, new = left + p, answer[..., p]
            old = out[..., column].clone()
            out[..., column] = (old + new) / 2 if seen[column] else new
            seen[column] = True
    return out


def fuse_even(answers, lefts, weight):
    size, stride = len(weight), lefts[1] - lefts[0]
    total = answers.new_zeros(*answers.shape[1:3], lefts[-1] + size)
    count = answers.new_zeros(lefts[-1] + size)
    for i, answer in enumerate(answers):
        total[..., i * stride : i * stride + size] += weight * answer
        count[i * stride : i * stride + size] += weight
    return total / count


def push(clean, x_t, energy):
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        return -torch.autograd.grad(energy(clean(x_t)).sum(), x_t)[0]


def colours(target):
    return lambda x0: (x0.mean((2, 3)) - target).square().sum(1)


def colour_uphill(clean, x_t, target, scale):
    return -scale * push(clean, x_t, colours(target))


def colour_unscaled(clean, x_t, target, scale):
    return push(clean, x_t, colours(target))


def colour_of_x0(clean, x_t, target, scale):
    return scale * push(lambda x0: x0, clean(x_t), colours(target))


def colour_of_noise(clean, x_t, target, scale):
    return scale * push(lambda x: x, x_t, colours(target))


def colour_pixels(clean, x_t, target, scale):
    def energy(x0):
        return (x0 - target[:, None, None]).square().mean((2, 3)).sum(1)

    return scale * push(clean, x_t, energy)


def colour_of_batch(clean, x_t, target, scale):
    return scale * push(clean, x_t, lambda x0: (x0.mean((0, 2, 3)) - target).square())


def colour_of_sums(clean, x_t, target, scale):
    return scale * push(clean, x_t, lambda x0: (x0.sum((2, 3)) - target).square())


def colour_unsquared(clean, x_t, target, scale):
    return scale * push(clean, x_t, lambda x0: (x0.mean((2, 3)) - target).norm(dim=1))


def colour_mean_of_all(clean, x_t, target, scale):
    return scale * push(
        clean, x_t, lambda x0: (x0.mean((2, 3)) - target).square().mean()
    )


def colour_batch_mean(clean, x_t, target, scale):
    return scale * push(clean, x_t, lambda x0: colours(target)(x0).mean())


def colour_needs_gradients(clean, x_t, target, scale):
    x_t = x_t.detach().requires_grad_()
    energy = colours(target)(clean(x_t)).sum()
    return -scale * torch.autograd.grad(energy, x_t)[0]


WRONG = {
    "guide": [
        (guide_scale_only, "always taken for a scale"),
        (guide_w_only, "always taken for a w"),
        (guide_exchanged, "two conventions are exchanged"),
        (guide_backwards, "u and c are exchanged"),
        (guide_from_c, "added to c"),
        (guide_inexact, "bit by bit"),
        (guide_below_one, "w is scale + 1 here"),
        (guide_one_minus, "w is 1 - scale here"),
        (guide_push_only, "not what it is added to"),
        (lambda u, c, amount, convention: None, "returned None"),
    ],
    "two_gaussians": [
        (gaussians_as_w, "scale is taken for w"),
        (gaussians_equal, "solve the equation"),
        (gaussians_squared, "lack the half"),
        (gaussians_stds, "standard deviations are returned"),
        (gaussians_arithmetic, "their inverses are"),
        (gaussians_turned, "two variances are exchanged"),
        (gaussians_wrong_sign, "has the wrong sign"),
        (gaussians_mixed, "their logarithms are"),
        (gaussians_only_c, "is not taken away"),
        (gaussians_multiplied, "weight is below zero"),
        (gaussians_power_one, "to the power 1"),
    ],
    "interval_guided": [
        (interval_to_u, "unconditional model speaks"),
        (interval_outside, "on outside of the interval"),
        (interval_closed, "lower end counts as inside"),
        (interval_one_sided, "only the lower end"),
        (interval_of_batch, "all samples are guided"),
        (interval_joined_by_or, "joined by an or"),
        (interval_all_at_once, "no sample is guided"),
        (interval_nothing_outside, "nothing is predicted"),
        (interval_turned, "inside of the interval u and c are exchanged"),
    ],
    "noisy_loss": [
        (loss_clean, "shown the clean data"),
        (loss_without_time, "told no time"),
        (loss_variance, "sigma is squared"),
        (loss_without_noise, "no noise is added"),
        (loss_noise_alone, "the noise alone"),
        (loss_one_level, "the first one's level"),
        (loss_rooted, "taken for alpha_bar"),
        (loss_over_batch, "runs over the batch"),
        (loss_twice_softmax, "softmax before a cross-entropy"),
        (loss_logit, "log_softmax is missing"),
        (loss_detached, "whose gradient reaches"),
    ],
    "fuse": [
        (fuse_unweighted, "weights are not used"),
        (fuse_by_number, "divided by the number of windows"),
        (fuse_summed, "not divided by the sum"),
        (fuse_squared, "weights are squared"),
        (fuse_overwritten, "overwrites the ones before"),
        (fuse_weights_below, "summed without weights"),
        (fuse_one_divisor, "one divisor serves"),
        (fuse_halves, "divide last"),
        (fuse_even, "NaN"),
    ],
    "colour_push": [
        (colour_uphill, "an energy is to fall"),
        (colour_unscaled, "scale is missing"),
        (colour_of_x0, "through the network"),
        (colour_of_noise, "noisy image is steered"),
        (colour_pixels, "each pixel is compared"),
        (colour_batch_mean, "mean over the batch"),
        (colour_of_batch, "of the whole batch"),
        (colour_of_sums, "pixels are summed"),
        (colour_unsquared, "distance is not squared"),
        (colour_mean_of_all, "over batch and channels"),
        (colour_needs_gradients, "run without gradients"),
    ],
}
