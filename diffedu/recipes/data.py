"""What the recipes show their networks: numbered images, with what is known of them.

From HELD_OUT on the numbers are of images that no training sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.errors import require
from diffedu.worlds import digits
from diffedu.worlds.shapeworld import ShapeWorld

VARIANT = "plain_rotated"
HELD_OUT = 2**40  # the number of the first image that no training sees
Batch = dict[str, Tensor]


def digit_images(n: int, start: int, pixels: int) -> Batch:
    """n shuffled digits (n, 1, 8, 8) with labels; from HELD_OUT on, test digits."""
    require(pixels == 8, f"the digits have 8 pixels a side, not {pixels}")
    held_out = start >= HELD_OUT
    images, labels = digits.load("test" if held_out else "train")
    first = start - HELD_OUT if held_out else start
    place = torch.arange(first, first + n)
    epochs = range(int(place[0]) // len(images), int(place[-1]) // len(images) + 1)
    order = torch.cat([_shuffled(len(images), epoch) for epoch in epochs])
    chosen = order[place - epochs[0] * len(images)]
    return {"x0": images[chosen], "label": labels[chosen]}


def _shuffled(n: int, epoch: int) -> Tensor:
    """The order (n,) of an epoch, the same whenever it is asked for."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(epoch))


def shape_images(n: int, start: int, pixels: int) -> Batch:
    """n ShapeWorld images (n, 3, s, s) with label (n,)."""
    world = ShapeWorld(pixels, VARIANT)
    return dict(zip(("x0", "label"), world.images_and_labels(n, start), strict=True))


def captioned_images(n: int, start: int, pixels: int) -> Batch:
    """n ShapeWorld images (n, 3, s, s) with caption (n, 4)."""
    drawn = ShapeWorld(pixels, VARIANT).batch(n, start)
    return {"x0": drawn.images, "caption": drawn.caption}


def seen_images(n: int, start: int, pixels: int) -> Batch:
    """n ShapeWorld images (n, 3, s, s) with caption (n, 4), all of seen pairings.

    Of every shape some hues are left out, so that what a network makes of them can be
    tested afterwards.
    """
    drawn = ShapeWorld(pixels, VARIANT, combinations="seen").batch(n, start)
    return {"x0": drawn.images, "caption": drawn.caption}


def only_images(data: Callable[[int, int, int], Batch]) -> Callable[..., Batch]:
    """The same data (n, C, s, s) without its conditions."""
    return lambda n, start, pixels: {"x0": data(n, start, pixels)["x0"]}
