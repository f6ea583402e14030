"""The object of a plain ShapeWorld image found again in its pixels, to judge edits.

A plain background has one colour, which the object never has: so a generated image,
of which nothing is known, can be measured too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffedu.errors import require, require_same_shape


def object_mask(images: Tensor, threshold: float = 0.5) -> Tensor:
    """Which pixels differ from the background, the median colour of the border.

    Args:
        images: (B, 3, s, s) in [-1, 1], of a variant with a plain background.
        threshold: Euclidean distance of colours from which a pixel counts. Objects
            and backgrounds of ShapeWorld are at least 0.69 apart.

    Returns:
        (B, s, s) bool.

    Raises:
        ValueError: if the images have another shape.
    """
    fits = images.dim() == 4 and images.shape[1] == 3
    require(fits, f"images need shape (B, 3, s, s), got {tuple(images.shape)}")
    sides = (images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1])
    background = torch.cat(sides, 2).median(2).values
    return (images - background[:, :, None, None]).norm(dim=1) > threshold


def object_hue(images: Tensor, mask: Tensor) -> Tensor:
    """The hue of the mean colour within a mask, in turns.

    It inverts the painter's rule: channel c of a colour is brightness +
    chroma cos 2 pi (hue - c / 3).

    Args:
        images: (B, 3, s, s).
        mask: (B, s, s) bool; an empty one answers NaN.

    Returns:
        (B,) in [0, 1).
    """
    weight = mask.to(images)[:, None]
    colour = (images * weight).sum((2, 3)) / weight.sum((2, 3))
    angle = 2 * math.pi * torch.arange(3, device=images.device) / 3
    x, y = (colour * angle.cos()).sum(1), (colour * angle.sin()).sum(1)
    return torch.atan2(y, x) / (2 * math.pi) % 1


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of masks (B, s, s) bool, shape (B,); 0 if both are empty.

    Raises:
        ValueError: if their shapes differ.
    """
    require_same_shape(a, b, "a and b")
    both, either = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return both / either.clamp(min=1)


def background_change(a: Tensor, b: Tensor, masks: Tensor) -> Tensor:
    """The mean absolute difference of two images outside of a mask.

    Args:
        a: (B, 3, s, s).
        b: (B, 3, s, s).
        masks: where not to look, (B, s, s) bool.

    Returns:
        (B,), in units of the images; 0 where nothing is left.
    """
    require_same_shape(a, b, "a and b")
    outside = (~masks).to(a)
    total = ((a - b).abs().mean(1) * outside).flatten(1).sum(1)
    return total / outside.flatten(1).sum(1).clamp(min=1)
