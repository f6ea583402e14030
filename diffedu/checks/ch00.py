"""Checks of chapter 0's warm-ups: adding noise, taking it away, and a judge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.checks.calling import Function
from diffedu.checks.machinery import Exercise, Property

Root = Callable[[Tensor], Tensor]


def _images(name: str) -> Callable[[torch.Generator], dict[str, object]]:
    """Draws eight images of 8x8, so that a value a sample also fits the columns."""

    def draw(generator: torch.Generator) -> dict[str, object]:
        x, eps = torch.randn(2, 8, 1, 8, 8, generator=generator)
        return {name: x, "eps": eps, "alpha_bar": _levels(generator)}

    return draw


def _levels(generator: torch.Generator) -> Tensor:
    """What is left of the variance of each of eight images: shape (8,)."""
    return 0.2 + 0.6 * torch.rand(8, generator=generator)


def _tall(values: Tensor) -> Tensor:
    """Values (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _same(value: Tensor) -> Tensor:
    """No root at all."""
    return value


def _add(
    x0: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    of_signal: Root = torch.sqrt,
    of_noise: Root = torch.sqrt,
    axes: Root = _tall,
) -> Tensor:
    """x_t, (B, 1, 8, 8), from x0 and eps of that shape and alpha_bar (B,)."""
    signal, noise = of_signal(alpha_bar), of_noise(1 - alpha_bar)
    return axes(signal) * x0 + axes(noise) * eps


ALONG_COLUMNS = (
    "alpha_bar multiplies the columns of each image, where each image has a value of "
    "its own"
)

add_noise = Exercise(
    "add_noise",
    draw=_images("x0"),
    truth=_add,
    mistakes={
        "the square root of 1 - alpha_bar is missing": lambda x0, eps, a: _add(
            x0, eps, a, of_noise=_same
        ),
        "the square root of alpha_bar is missing": lambda x0, eps, a: _add(
            x0, eps, a, of_signal=_same
        ),
        "both square roots are missing": lambda x0, eps, a: _add(
            x0, eps, a, of_signal=_same, of_noise=_same
        ),
        "image and noise are exchanged": lambda x0, eps, a: _add(eps, x0, a),
        "the noise is taken away, not added": lambda x0, eps, a: _add(x0, -eps, a),
        ALONG_COLUMNS: lambda x0, eps, a: _add(x0, eps, a, axes=_same),
    },
)


def _remove(
    x_t: Tensor, eps: Tensor, alpha_bar: Tensor, root: Root = torch.sqrt
) -> Tensor:
    """x0, (B, 1, 8, 8), from x_t and eps of that shape and alpha_bar (B,)."""
    a = _tall(alpha_bar)
    return (x_t - root(1 - a) * eps) / a.sqrt()


remove_noise = Exercise(
    "remove_noise",
    draw=_images("x_t"),
    truth=_remove,
    mistakes={
        "the square root of 1 - alpha_bar is missing": lambda x, eps, a: _remove(
            x, eps, a, root=_same
        ),
        "the square root of alpha_bar is missing": lambda x, eps, a: (
            (x - _tall(1 - a).sqrt() * eps) / _tall(a)
        ),
        "the result is not divided: the image is still faint": lambda x, eps, a: (
            x - _tall(1 - a).sqrt() * eps
        ),
        "the image is divided before the noise is taken away": lambda x, eps, a: (
            x / _tall(a).sqrt() - _tall(1 - a).sqrt() * eps
        ),
        "only the noise is divided: parentheses around the difference are missing": (
            lambda x, eps, a: x - _tall(1 - a).sqrt() * eps / _tall(a).sqrt()
        ),
        "multiplied where the equation, solved for x0, divides": lambda x, eps, a: (
            (x - _tall(1 - a).sqrt() * eps) * _tall(a).sqrt()
        ),
        "the noise is added once more, not taken away": lambda x, eps, a: _remove(
            x, -eps, a
        ),
        ALONG_COLUMNS: lambda x, eps, a: (x - (1 - a).sqrt() * eps) / a.sqrt(),
    },
)


def _spread(generator: torch.Generator, size: float) -> Tensor:
    """A difference of one size in all pixels, signs at random: (1, 8, 8)."""
    return size * torch.randn(1, 8, 8, generator=generator).sign()


def _dot(generator: torch.Generator, size: float) -> Tensor:
    """A difference in one pixel only: (1, 8, 8)."""
    dot = torch.zeros(64)
    dot[torch.randint(64, (), generator=generator)] = size
    return dot.reshape(1, 8, 8)


def _beside(x: Tensor, generator: torch.Generator) -> Tensor:
    """Twelve images (12, 1, 8, 8) near the seven of x, some nearer by other measures.

    For the first x the sum of differences prefers the wrong image, for the second the
    largest difference, for the third the dot product and the angle.
    """
    touched = 0.3 * torch.randn(5, 1, 8, 8, generator=generator)
    pairs = [
        x[0] + _spread(generator, 0.1), x[0] + _dot(generator, 1.0),
        x[1] + _dot(generator, 0.8), x[1] + _spread(generator, 0.13),
        x[2] + touched[0], 1.5 * x[2], 0.4 * x[3], *(x[3:] + touched[1:]),
    ]  # fmt: skip
    return torch.stack([*pairs, 2 * touched[0]])


def _known(generator: torch.Generator) -> dict[str, object]:
    """Images to judge, and twelve known ones with labels that are no row numbers."""
    x = torch.randn(7, 1, 8, 8, generator=generator)
    known = _beside(x, generator)[torch.randperm(12, generator=generator)]
    labels = torch.randperm(12, generator=generator) + 20
    return {"x": x, "known": known, "labels": labels}


def _distances(x: Tensor, known: Tensor) -> Tensor:
    """Euclidean distances (B, N) between images (B, 1, 8, 8) and (N, 1, 8, 8)."""
    return (x.flatten(1)[:, None] - known.flatten(1)[None]).square().sum(-1).sqrt()


def _by_sum(x: Tensor, known: Tensor) -> Tensor:
    """Sums of absolute differences (B, N) of images (B, 1, 8, 8) and (N, 1, 8, 8)."""
    return (x.flatten(1)[:, None] - known.flatten(1)[None]).abs().sum(-1)


def _by_largest(x: Tensor, known: Tensor) -> Tensor:
    """Largest differences (B, N) of images (B, 1, 8, 8) and (N, 1, 8, 8)."""
    return (x.flatten(1)[:, None] - known.flatten(1)[None]).abs().amax(-1)


def _by_product(x: Tensor, known: Tensor) -> Tensor:
    """Dot products (B, N) of images (B, 1, 8, 8) and (N, 1, 8, 8)."""
    return x.flatten(1) @ known.flatten(1).T


def _by_angle(x: Tensor, known: Tensor) -> Tensor:
    """Dot products (B, N) over the lengths of the known images (N, 1, 8, 8)."""
    return _by_product(x, known) / known.flatten(1).norm(dim=1)


def _whole(answer: Function, generator: torch.Generator) -> bool:
    """Whether the labels come out as whole numbers."""
    found = torch.as_tensor(answer(*_known(generator).values()))
    return not found.is_floating_point()


nearest_label = Exercise(
    "nearest_label",
    draw=_known,
    truth=lambda x, known, labels: labels[_distances(x, known).argmin(1)],
    mistakes={
        "it returns which known image is nearest, not that image's label": (
            lambda x, known, labels: _distances(x, known).argmin(1)
        ),
        "it takes the known image that is farthest away": (
            lambda x, known, labels: labels[_distances(x, known).argmax(1)]
        ),
        "it returns distances, not labels": (
            lambda x, known, labels: _distances(x, known).min(1).values
        ),
        "for each known image it looks for the nearest of x; the other way round": (
            lambda x, known, labels: labels[_distances(x, known).argmin(0) % 12]
        ),
        "differences are added up with their signs, so they cancel": (
            lambda x, known, labels: labels[
                (x.flatten(1)[:, None] - known.flatten(1)[None]).sum(-1).argmin(1)
            ]
        ),
        "all images of x get the verdict of one": (
            lambda x, known, labels: labels[_distances(x, known).sum(0).argmin()]
        ),
        "absolute differences are added up where squares belong": (
            lambda x, known, labels: labels[_by_sum(x, known).argmin(1)]
        ),
        "only the largest difference counts, where all pixels should": (
            lambda x, known, labels: labels[_by_largest(x, known).argmin(1)]
        ),
        "it takes the largest dot product, which favours images of strong contrast": (
            lambda x, known, labels: labels[_by_product(x, known).argmax(1)]
        ),
        "it compares angles (cosine similarity), so contrast does not count": (
            lambda x, known, labels: labels[_by_angle(x, known).argmax(1)]
        ),
    },
    properties=(
        Property("the labels come out as floats; they went in as integers", _whole),
    ),
)
