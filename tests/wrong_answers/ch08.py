"""Wrong answers to chapter 8's exercises, and what the reader is told."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm, silu


def norm(h):
    return layer_norm(h, h.shape[-1:], eps=1e-6)


def six(c, weight, bias):
    return (c @ weight.T + bias)[:, None].chunk(6, dim=2)


def adaln_without_one(h, c, weight, bias, mix, feed):
    b1, s1, g1, b2, s2, g2 = six(c, weight, bias)
    h = h + g1 * mix(s1 * norm(h) + b1)
    return h + g2 * feed(s2 * norm(h) + b2)


def adaln_exchanged(h, c, weight, bias, mix, feed):
    s1, b1, g1, s2, b2, g2 = six(c, weight, bias)
    h = h + g1 * mix((1 + s1) * norm(h) + b1)
    return h + g2 * feed((1 + s2) * norm(h) + b2)


def adaln_bare(h, c, weight, bias, mix, feed):
    b1, s1, g1, b2, s2, g2 = six(c, weight, bias)
    h = h + g1 * mix((1 + s1) * h + b1)
    return h + g2 * feed((1 + s2) * h + b2)


def adaln_gated_shortcut(h, c, weight, bias, mix, feed):
    b1, s1, g1, b2, s2, g2 = six(c, weight, bias)
    h = g1 * (h + mix((1 + s1) * norm(h) + b1))
    return g2 * (h + feed((1 + s2) * norm(h) + b2))


def adaln_parallel(h, c, weight, bias, mix, feed):
    b1, s1, g1, b2, s2, g2 = six(c, weight, bias)
    first = g1 * mix((1 + s1) * norm(h) + b1)
    return h + first + g2 * feed((1 + s2) * norm(h) + b2)


def adaln_with_order(*order, of=lambda c: c, loud=1, late=False):
    def adaln(h, c, weight, bias, mix, feed):
        parts = six(of(c), weight, loud * bias)
        b1, s1, g1, b2, s2, g2 = (parts[i] for i in order)
        if late:
            h = h + g1 * mix(norm((1 + s1) * h + b1))
            return h + g2 * feed(norm((1 + s2) * h + b2))
        h = h + g1 * mix((1 + s1) * norm(h) + b1)
        return h + g2 * feed((1 + s2) * norm(h) + b2)

    return adaln


def adaln_over_tokens(h, c, weight, bias, mix, feed):
    def over(h):
        var, mean = torch.var_mean(h, 1, correction=0, keepdim=True)
        return (h - mean) / (var + 1e-6).sqrt()

    b1, s1, g1, b2, s2, g2 = six(c, weight, bias)
    h = h + g1 * mix((1 + s1) * over(h) + b1)
    return h + g2 * feed((1 + s2) * over(h) + b2)


def field_later(kernels, strides):
    later = [torch.tensor(strides[i + 1 :]).prod() for i in range(len(kernels))]
    return 1 + sum((k - 1) * int(p) for k, p in zip(kernels, later, strict=True))


def field_previous(kernels, strides):
    before = [1, *strides[:-1]]
    return 1 + sum((k - 1) * s for k, s in zip(kernels, before, strict=True))


def field_own_stride(kernels, strides):
    seen, jump = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        jump *= stride
        seen += (kernel - 1) * jump
    return seen


def field_flat(kernels, strides):
    return 1 + sum(k - 1 for k in kernels)


def field_whole_kernels(kernels, strides):
    seen, jump = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        seen += kernel * jump
        jump *= stride
    return seen


def field_from_zero(kernels, strides):
    seen, jump = 0, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        seen += (kernel - 1) * jump
        jump *= stride
    return seen


def operations(size, patch, width, depth, square=2, two=2, condition=6, linear=12):
    n = (size // patch) ** 2
    each = linear * n * width**2 + square * n**2 * width + condition * width**2
    return two * depth * each


def operations_of_side(size, patch, width, depth):
    n = size // patch
    return 2 * depth * (12 * n * width**2 + 2 * n**2 * width + 6 * width**2)


def operations_one_condition(size, patch, width, depth):
    return operations(size, patch, width, depth, condition=0) + 12 * width**2


def operations_short(size, patch, width, depth):
    n = (size // patch) ** 2
    return 2 * depth * (12 * n * width**2 + 2 * n**2 + 6 * width**2)


def cut(x, window):
    return x.unflatten(2, (-1, window))


def windows_unscaled(q, k, v, window):
    q, k, v = (cut(x, window) for x in (q, k, v))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).flatten(2, 3)


def windows_everything(q, k, v, window):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def windows_over_queries(q, k, v, window):
    q, k, v = (cut(x, window) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-2) @ v).flatten(2, 3)


def windows_masked_late(q, k, v, window):
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    run = torch.arange(q.shape[2]) // window
    return (weights * (run[:, None] == run)) @ v


def windows_root_of_window(q, k, v, window):
    q, k, v = (cut(x, window) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / window**0.5
    return (scores.softmax(-1) @ v).flatten(2, 3)


def windows_exchanged(q, k, v, window):
    q, k, v = (cut(x, window) for x in (q, k, v))
    scores = k @ q.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).flatten(2, 3)


def windows_so_many(q, k, v, window):
    q, k, v = (x.unflatten(2, (window, -1)) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).flatten(2, 3)


def windows_masked_with_zero(q, k, v, window):
    run = torch.arange(q.shape[2]) // window
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return torch.where(run[:, None] == run, scores, 0 * scores).softmax(-1) @ v


def windows_masked(q, k, v, window):
    run = torch.arange(q.shape[2]) // window
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(run[:, None] != run, -torch.inf).softmax(-1) @ v


def scan_late(u, decay, into, out):
    h, answers = torch.zeros(len(u), *decay.shape, dtype=u.dtype), []
    for k in range(u.shape[2]):
        answers.append((out * h).sum(-1))
        h = decay * h + into * u[:, :, k, None]
    return torch.stack(answers, dim=2)


def scan_forgetful(u, decay, into, out):
    return (out * into).sum(-1)[:, None] * u


def scan_decays_all(u, decay, into, out):
    h, answers = 0, []
    for k in range(u.shape[2]):
        h = decay * (h + into * u[:, :, k, None])
        answers.append((out * h).sum(-1))
    return torch.stack(answers, dim=2)


def scan_right(u, decay, into, out):
    h, answers = 0, []
    for k in range(u.shape[2]):
        h = decay * h + into * u[:, :, k, None]
        answers.append((out * h).sum(-1))
    return torch.stack(answers, dim=2)


WRONG = {
    "adaln_zero": [
        (adaln_without_one, "1 is missing"),
        (adaln_exchanged, "shift and scale are exchanged"),
        (adaln_bare, "the norm is missing"),
        (adaln_gated_shortcut, "multiplies the shortcut too"),
        (adaln_parallel, "works on what the first half answered"),
        (adaln_with_order(0, 2, 1, 3, 5, 4), "scale and gate are exchanged"),
        (adaln_with_order(3, 4, 5, 0, 1, 2), "each other's vectors"),
        (adaln_with_order(0, 1, 2, 3, 4, 2), "the first half's gate"),
        (adaln_with_order(*range(6), loud=0), "bias of the linear layer"),
        (adaln_with_order(*range(6), of=silu), "a SiLU acts"),
        (adaln_with_order(*range(6), late=True), "comes after scale and shift"),
        (adaln_over_tokens, "runs over the tokens"),
        (lambda *a: None, "returned None"),
    ],
    "receptive_field": [
        (field_own_stride, "own stride"),
        (field_flat, "strides are ignored"),
        (field_whole_kernels, "whole size"),
        (field_from_zero, "starts at 0"),
        (field_later, "strides after a layer"),
        (field_previous, "only the layer before"),
        (lambda k, s: 1 + sum((a - 1) * 2**i for i, a in enumerate(k)), "for 2"),
    ],
    "dit_operations": [
        (lambda *a: operations(*a, square=0), "N squared"),
        (lambda *a: operations(*a, two=1), "counts as two"),
        (lambda *a: operations(*a, condition=0), "the condition is missing"),
        (operations_of_side, "one side"),
        (lambda *a: operations(*a, square=1), "weighted mean; one is counted"),
        (lambda *a: operations(*a, linear=10), "three layers' work"),
        (lambda *a: operations(*a, linear=8), "4 w^2 a token are missing"),
        (operations_one_condition, "every block has its own"),
        (operations_short, "a product of length w"),
    ],
    "windowed_attention": [
        (windows_unscaled, "not divided by the square root"),
        (windows_everything, "no windows"),
        (windows_over_queries, "over the queries"),
        (windows_masked_late, "no longer sum to 1"),
        (windows_root_of_window, "root of the window"),
        (windows_exchanged, "queries and keys are exchanged"),
        (windows_so_many, "each run has `window` tokens"),
        (windows_masked_with_zero, "exp(0) is 1"),
        (windows_masked, "nothing is saved"),
    ],
    "state_scan": [
        (scan_late, "shifted by one"),
        (scan_forgetful, "not carried on"),
        (scan_decays_all, "as well as on the old state"),
        (lambda u, *a: scan_right(u.flip(2), *a).flip(2), "from its end"),
        (lambda u, a, *b: scan_right(u, a.exp(), *b), "exponentiated"),
        (lambda *a: 2 * scan_right(*a), "factor 2 of complex states"),
        (lambda u, *a: scan_right(u, *a) + u, "no direct term"),
    ],
}
