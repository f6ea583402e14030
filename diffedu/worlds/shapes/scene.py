"""A scene of one or two objects: its image, and what stands where in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffedu.worlds.shapes import painter
from diffedu.worlds.shapes.outlines import SHAPES, signed_distance

_KEYPOINTS = torch.tensor([shape.keypoints for shape in SHAPES.values()])


class Layer(NamedTuple):
    """One object on the pixel grid: its frame's x and y and its distance (n, s, s)."""

    prefix: str
    x: Tensor
    y: Tensor
    distance: Tensor


class Labels(NamedTuple):
    """What is known about each image; the fields are those of a `ShapeBatch`."""

    parts: Tensor
    keypoints: Tensor
    visible: Tensor
    depth: Tensor


def layers(f: dict[str, Tensor], size: int) -> list[Layer]:
    """The objects of a scene, the labelled one first.

    Args:
        f: factors, each (n,).
        size: pixels a side.

    Returns:
        one layer, or two where the factors have a second object.
    """
    prefixes = ("", "second_") if "second_label" in f else ("",)
    found = []
    for prefix in prefixes:
        x, y = painter.frame(f, prefix, size)
        distance = signed_distance(f[prefix + "label"], x, y)
        found.append(Layer(prefix, x, y, distance))
    return found


def draw(f: dict[str, Tensor], size: int, objects: list[Layer]) -> Tensor:
    """The image of a scene.

    Args:
        f: factors, each (n,).
        size: pixels a side.
        objects: the scene's layers.

    Returns:
        (n, 3, s, s) in [-1, 1].
    """
    image = painter.background(f, size)
    first, *others = objects
    for second in others:
        _paint(image, f, second, only=f["second_in_front"] == 0)
    _paint(image, f, first)
    for second in others:
        _paint(image, f, second, only=f["second_in_front"] == 1)
    return image.clamp_(-1, 1)


def _paint(
    image: Tensor, f: dict[str, Tensor], layer: Layer, only: Tensor | None = None
) -> None:
    """Paint a layer, in the images (n,) of `only` if that is given."""
    label, scale = f[layer.prefix + "label"], f[layer.prefix + "scale"]
    size = image.shape[-1]
    cover = painter.coverage(layer.distance, scale, size)
    if only is not None:
        cover = cover * only[:, None, None]
    parts = painter.part_weights(label, layer.x, layer.y, 2 / (scale * size))
    painter.paint_object(image, f, layer.prefix, cover, parts)


def describe(f: dict[str, Tensor], objects: list[Layer]) -> Labels:
    """The dense and the point labels of a scene.

    Args:
        f: factors, each (n,).
        objects: the scene's layers.

    Returns:
        parts (n, s, s), keypoints (n, 5, 2), visible (n, 5), depth (n, s, s).
    """
    first, *others = objects
    inside = first.distance < 0
    depth, seen = inside.long(), inside
    points = painter.place(_KEYPOINTS.to(inside.device)[f["label"]], f)
    visible = torch.ones_like(points[..., 0], dtype=torch.bool)
    for second in others:
        front = f["second_in_front"].bool()[:, None]
        hidden = _covers(f, points)
        visible = ~(front & hidden)
        depth = _order(inside, second.distance < 0, front[..., None])
        seen = inside & ~(front[..., None] & (second.distance < 0))
    parts = painter.part_names(f["label"], first.x, first.y, seen)
    return Labels(parts, points, visible, depth)


def _order(first: Tensor, second: Tensor, second_in_front: Tensor) -> Tensor:
    """0 where nothing stands, 1 for the further object, 2 for the nearer."""
    of_first = torch.where(second_in_front, 1, 2) * first
    of_second = torch.where(second_in_front, 2, 1) * second
    return torch.maximum(of_first, of_second)


def _covers(f: dict[str, Tensor], points: Tensor) -> Tensor:
    """Whether the second object lies at each point (n, k, 2): (n, k) bool."""
    x, y = points[..., 0], points[..., 1]
    x, y = painter.to_frame(f, "second_", x[:, None, :], y[:, None, :])
    return signed_distance(f["second_label"], x, y)[:, 0] < 0
