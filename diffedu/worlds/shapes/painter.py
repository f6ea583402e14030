"""Brush and colours: hues, waves, outlines with smooth edges, parts.

Everything is elementwise over (n, s, s), so that an image does not depend on its
batch. A hue is a turn: colour c of (r, g, b) is brightness + chroma cos 2 pi (h - c/3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffedu.worlds.shapes.outlines import SHAPES

CHROMA = 0.5
WAVE_CHROMA = 0.5
# "left" and "right" differ in hue from "top", one to each side
PART_HUES = (0.0, 0.11, -0.11)
PARTS = ("background", "top", "left", "right")
_SPLITS = torch.tensor([shape.split for shape in SHAPES.values()])


def grid(size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The pixels' centres in [-1, 1]: x (1, 1, s) to the right, y (1, s, 1) down."""
    centres = (torch.arange(size, device=device) * 2 + 1) / size - 1
    return centres[None, None, :], centres[None, :, None]


def _planes(value: Tensor) -> Tensor:
    return value[:, None, None]


def colour(hue: Tensor, brightness: Tensor, chroma: Tensor | float) -> Tensor:
    """The colour of a hue.

    Args:
        hue: (n,) turns; 0 is red, 1/3 green, 2/3 blue.
        brightness: (n,) the mean of the three channels.
        chroma: (n,) or one number, how far the channels leave that mean.

    Returns:
        (n, 3) in [-1, 1] where |brightness| + chroma is.
    """
    shift = torch.arange(3, device=hue.device) / 3
    wave = (2 * math.pi * (hue[:, None] - shift)).cos()
    amount = chroma[:, None] if isinstance(chroma, Tensor) else chroma
    return brightness[:, None] + amount * wave


def to_frame(
    f: dict[str, Tensor], prefix: str, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Places of the image in an object's own frame, where it fits the unit disc.

    Args:
        f: factors, each (n,).
        prefix: "" for the object, "second_" for the other one.
        x, y: (n or 1, a, b), places in [-1, 1].

    Returns:
        x, y: (n, a, b).
    """
    x, y = x - _planes(f[prefix + "x"]), y - _planes(f[prefix + "y"])
    turn, scale = f[prefix + "rotation"], f[prefix + "scale"]
    c, s = _planes(turn.cos() / scale), _planes(turn.sin() / scale)
    return x * c + y * s, y * c - x * s


def frame(f: dict[str, Tensor], prefix: str, size: int) -> tuple[Tensor, Tensor]:
    """Every pixel's place in an object's frame: x, y (n, s, s), as `to_frame`."""
    return to_frame(f, prefix, *grid(size, f["x"].device))


def place(points: Tensor, f: dict[str, Tensor]) -> Tensor:
    """The inverse of `to_frame`, for points (n, k, 2) of the labelled object."""
    c, s = (f["rotation"].cos() * f["scale"], f["rotation"].sin() * f["scale"])
    x, y = points.unbind(-1)
    across = x * c[:, None] - y * s[:, None] + f["x"][:, None]
    down = x * s[:, None] + y * c[:, None] + f["y"][:, None]
    return torch.stack([across, down], -1)


def background(f: dict[str, Tensor], size: int) -> Tensor:
    """The background's image (n, 3, s, s): one colour, with two waves if there are."""
    hue, chroma = f["background_hue"], f["background_chroma"]
    flat = colour(hue, f["background_brightness"], chroma)
    image = flat[:, :, None, None].expand(-1, -1, size, size).clone()
    for wave in ("wave_1_", "wave_2_"):
        if wave + "height" in f:
            _add_wave(image, f, wave)
    return image


def _add_wave(image: Tensor, f: dict[str, Tensor], wave: str) -> None:
    x, y = grid(image.shape[-1], image.device)
    rate, angle = math.pi * f[wave + "frequency"], f[wave + "angle"]
    along = x * _planes(rate * angle.cos()) + y * _planes(rate * angle.sin())
    height = (along + _planes(f[wave + "phase"])).sin_()
    ones = torch.ones_like(angle)
    tint = f[wave + "height"][:, None] * colour(f[wave + "hue"], ones, WAVE_CHROMA)
    for channel in range(3):
        image[:, channel].addcmul_(height, _planes(tint[:, channel]))


def coverage(distance: Tensor, scale: Tensor, size: int) -> Tensor:
    """How much of each pixel is covered, in [0, 1]: a smooth edge one pixel wide.

    Args:
        distance: (n, s, s) signed distance in the object's frame.
        scale: (n,) the object's radius in half image widths.
        size: pixels a side.

    Returns:
        (n, s, s).
    """
    return (0.5 - distance * _planes(scale * (size / 2))).clamp_(0, 1)


def paint_object(
    image: Tensor, f: dict[str, Tensor], prefix: str, cover: Tensor, parts: Tensor
) -> None:
    """Lay an object over the image, in place.

    Args:
        image: (n, 3, s, s).
        f: factors, each (n,).
        prefix: "" or "second_".
        cover: (n, s, s) in [0, 1].
        parts: (2, n, s, s) how much of each pixel is "left" and "right".
    """
    hue, brightness = f[prefix + "hue"], f[prefix + "brightness"]
    top, left, right = (colour(hue + h, brightness, CHROMA) for h in PART_HUES)
    for c in range(3):
        paint = _planes(top[:, c]) + parts[0] * _planes(left[:, c] - top[:, c])
        paint.addcmul_(parts[1], _planes(right[:, c] - top[:, c]))
        image[:, c].lerp_(paint, cover)


def part_weights(label: Tensor, x: Tensor, y: Tensor, pixel: Tensor) -> Tensor:
    """How much of each pixel belongs to "left" and to "right"; the rest is "top".

    Args:
        label: (n,) int64.
        x, y: (n, s, s) places in the object's frame.
        pixel: (n,) the width of a pixel in that frame.

    Returns:
        (2, n, s, s) in [0, 1].
    """
    sharp = _planes(1 / pixel)
    split = _planes(_SPLITS.to(label.device)[label])
    below = ((y - split) * sharp + 0.5).clamp_(0, 1)
    right = (x * sharp + 0.5).clamp_(0, 1) * below
    return torch.stack([below - right, right])


def part_names(label: Tensor, x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Each pixel's part, a place in `PARTS`: (n, s, s) int64, 0 outside."""
    split = _planes(_SPLITS.to(label.device)[label])
    below = torch.where(x < 0, 2, 3)
    return torch.where(y < split, 1, below) * inside
