"""Wrong answers to chapter 0's warm-ups, and what the reader is told."""

from __future__ import annotations

import torch


def tall(values):
    return values[:, None, None, None]


def noise_without_root(x0, eps, alpha_bar):
    return tall(alpha_bar).sqrt() * x0 + (1 - tall(alpha_bar)) * eps


def noise_along_columns(x0, eps, alpha_bar):
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def still_faint(x_t, eps, alpha_bar):
    return x_t - (1 - tall(alpha_bar)).sqrt() * eps


def divided_too_early(x_t, eps, alpha_bar):
    return x_t / tall(alpha_bar).sqrt() - (1 - tall(alpha_bar)).sqrt() * eps


def in_place(x0, eps, alpha_bar):
    x0 *= tall(alpha_bar).sqrt()
    return x0.add_((1 - tall(alpha_bar)).sqrt() * eps)


def distances(x, known):
    return torch.cdist(x.flatten(1), known.flatten(1))


def by_cosine(x, known, labels):
    rows, columns = x.flatten(1)[:, None], known.flatten(1)[None]
    return labels[torch.cosine_similarity(rows, columns, dim=2).argmax(1)]


WRONG = {
    "add_noise": [
        (noise_without_root, "the square root of 1 - alpha_bar is missing"),
        (
            lambda x, e, a: tall(a) * x + (1 - tall(a)).sqrt() * e,
            "the square root of alpha_bar is missing",
        ),
        (lambda x, e, a: tall(a) * x + (1 - tall(a)) * e, "both square roots"),
        (
            lambda x, e, a: (1 - tall(a)).sqrt() * x + tall(a).sqrt() * e,
            "image and noise are exchanged",
        ),
        (
            lambda x, e, a: tall(a).sqrt() * x - (1 - tall(a)).sqrt() * e,
            "the noise is taken away",
        ),
        (noise_along_columns, "multiplies the columns of each image"),
        (in_place, "it changes its input x0"),
        (lambda x, e, a: None, "returned None"),
    ],
    "remove_noise": [
        (
            lambda x, e, a: (x - (1 - tall(a)) * e) / tall(a).sqrt(),
            "the square root of 1 - alpha_bar is missing",
        ),
        (
            lambda x, e, a: (x - (1 - tall(a)).sqrt() * e) / tall(a),
            "the square root of alpha_bar is missing",
        ),
        (still_faint, "the image is still faint"),
        (divided_too_early, "divided before the noise is taken away"),
        (
            lambda x, e, a: (x - (1 - tall(a)).sqrt() * e) * tall(a).sqrt(),
            "multiplied where the equation",
        ),
        (
            lambda x, e, a: x - (1 - tall(a)).sqrt() * e / tall(a).sqrt(),
            "parentheses around the difference",
        ),
        (
            lambda x, e, a: (x + (1 - tall(a)).sqrt() * e) / tall(a).sqrt(),
            "the noise is added once more",
        ),
        (
            lambda x, e, a: (x - (1 - a).sqrt() * e) / a.sqrt(),
            "multiplies the columns of each image",
        ),
    ],
    "nearest_label": [
        (lambda x, k, y: distances(x, k).argmin(1), "not that image's label"),
        (lambda x, k, y: y[distances(x, k).argmax(1)], "farthest away"),
        (lambda x, k, y: distances(x, k).min(1).values, "returns distances"),
        (lambda x, k, y: y[distances(x, k).argmin(0)], "the other way round"),
        (
            lambda x, k, y: y[(x[:, None] - k[None]).sum((2, 3, 4)).argmin(1)],
            "so they cancel",
        ),
        (lambda x, k, y: y[distances(x, k).sum(0).argmin()], "verdict of one"),
        (
            lambda x, k, y: y[torch.cdist(x.flatten(1), k.flatten(1), p=1).argmin(1)],
            "absolute differences",
        ),
        (
            lambda x, k, y: y[(x[:, None] - k).abs().amax((2, 3, 4)).argmin(1)],
            "only the largest difference",
        ),
        (
            lambda x, k, y: y[(x.flatten(1) @ k.flatten(1).T).argmax(1)],
            "largest dot product",
        ),
        (by_cosine, "compares angles"),
        (
            lambda x, k, y: y[distances(x, k).argmin(1)].float(),
            "come out as floats",
        ),
    ],
}
