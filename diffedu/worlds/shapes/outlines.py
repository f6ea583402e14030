"""Eight outlines as signed distances, with their keypoints and symmetries.

Each fits in the unit disc of its own frame: x to the right, y down, upright when
its rotation is 0. The distance is negative inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffedu.errors import lookup

Points = tuple[tuple[float, float], ...]
Permutation = tuple[int, ...]


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _round(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt_()


def disc(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a disc of radius 0.8; x, y and the result (..., s, s)."""
    return _round(x, y) - 0.8


def square(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a square of side 1.4; x, y and the result (..., s, s)."""
    return _box(x, y, 0.7, 0.7)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a tall triangle: apex (0, -1), base from (-.75, .65)."""
    flank = (2.2 * x.abs() - y - 1) / math.hypot(2.2, 1)
    return torch.maximum(flank, y - 0.65)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a star with five tips at radius 1 and notches at 0.45."""
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, up = x.abs(), -y
    for _ in range(2):  # mirror at the line between two tips, then at the upright
        beyond = 2 * (x * c - up * s).clamp_(min=0)
        x, up = (x - beyond * c).abs_(), up + beyond * s
    run, rise = 0.45 * s, 1 - 0.45 * c
    return (x * rise + (up - 1) * run) / math.hypot(run, rise)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a cross of two bars of 1.9 by 0.6."""
    return torch.minimum(_box(x, y, 0.3, 0.95), _box(x, y, 0.95, 0.3))


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a ring between the radii 0.48 and 0.92."""
    return (_round(x, y) - 0.7).abs_() - 0.22


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a moon that opens upwards: a disc without another."""
    return torch.maximum(_round(x, y) - 0.92, 0.72 - _round(x, y + 0.5))


def tee(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the letter T: a bar of 1.56 by 0.48 on a stem 0.5 wide."""
    return torch.minimum(_box(x, y + 0.38, 0.78, 0.24), _box(x, y - 0.14, 0.25, 0.76))


@dataclass(frozen=True)
class Shape:
    """One outline with what is known about it.

    Args:
        distance: the signed distance, of x and y (..., s, s).
        keypoints: five points (x, y) inside the outline.
        split: the part "top" lies above y = split, "left" and "right" below it.
        generators: permutations of the keypoints that generate the symmetries.
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    keypoints: Points
    split: float
    generators: tuple[Permutation, ...]


def _around(radius: float) -> Points:
    angles = [2 * math.pi * k / 5 for k in range(5)]
    return tuple((radius * math.sin(a), -radius * math.cos(a)) for a in angles)


def _centre_and(a: float, b: float) -> Points:
    return ((0.0, 0.0), (a, -b), (b, a), (-a, b), (-b, -a))


_QUARTERS = ((0, 2, 3, 4, 1), (0, 1, 4, 3, 2))
_CORNERS = ((0, 2, 3, 4, 1), (0, 4, 3, 2, 1))
_FIFTHS = ((1, 2, 3, 4, 0), (0, 4, 3, 2, 1))
_MIRROR = ((0, 2, 1, 4, 3),)

SHAPES: dict[str, Shape] = {
    "disc": Shape(disc, _centre_and(0.0, 0.62), -0.1, _QUARTERS),
    "square": Shape(square, _centre_and(0.56, 0.56), -0.1, _CORNERS),
    "triangle": Shape(
        triangle,
        ((0.0, -0.75), (-0.52, 0.5), (0.52, 0.5), (-0.22, -0.1), (0.22, -0.1)),
        -0.05,
        _MIRROR,
    ),
    "star": Shape(star, _around(0.78), -0.15, _FIFTHS),
    "cross": Shape(cross, _centre_and(0.0, 0.78), -0.2, _QUARTERS),
    "ring": Shape(ring, _around(0.7), -0.15, _FIFTHS),
    "crescent": Shape(
        crescent,
        ((0.0, 0.57), (-0.78, -0.1), (0.78, -0.1), (-0.6, 0.42), (0.6, 0.42)),
        0.1,
        _MIRROR,
    ),
    "tee": Shape(
        tee,
        ((0.0, 0.72), (-0.6, -0.38), (0.6, -0.38), (-0.12, 0.22), (0.12, 0.22)),
        -0.14,
        _MIRROR,
    ),
}
NAMES = tuple(SHAPES)


def _group(generators: tuple[Permutation, ...]) -> list[Permutation]:
    """Every product of the generators, the identity first."""
    found = [tuple(range(5))]
    for known in found:
        for step in generators:
            product = tuple(known[k] for k in step)
            if product not in found:
                found.append(product)
    return found


def symmetries(name: str) -> Tensor:
    """The permutations of a shape's keypoints that keep its outline.

    The disc and the ring have every rotation; here stand those that keep the set
    of five keypoints.

    Args:
        name: one of the eight shapes.

    Returns:
        (G, 5) int64, the identity first: `keypoints[symmetries(name)[g]]` are the
        same points of the outline, named differently.

    Raises:
        ValueError: if the shape is unknown.
    """
    return torch.tensor(_group(lookup(SHAPES, name, "shape").generators))


def signed_distance(label: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Each image's own outline, class after class.

    Args:
        label: (n,) int64, the index of the shape.
        x, y: (n, s, s), places in each shape's frame.

    Returns:
        (n, s, s), negative inside.
    """
    distance = torch.empty_like(x)
    for k, shape in enumerate(SHAPES.values()):
        (chosen,) = (label == k).nonzero(as_tuple=True)
        if len(chosen):
            distance[chosen] = shape.distance(x[chosen], y[chosen])
    return distance
