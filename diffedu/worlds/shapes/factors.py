"""Random factors by counting: image i depends on (seed, i) and on nothing else.

A hash of (seed, stream, i, slot) is a uniform number, so batches of any size, in
any order, hold the same images (the mixer is SplitMix64's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffedu.errors import unknown
from diffedu.worlds.shapes.outlines import NAMES

_GOLDEN, _MIX = -0x61C8864680B583EB, (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros (int64's own shift copies the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _scramble(x: Tensor) -> Tensor:
    for bits, factor in zip((30, 27), _MIX, strict=True):
        x = (x ^ _shift(x, bits)) * factor
    return x ^ _shift(x, 31)


def uniforms(seed: int, stream: int, index: Tensor, slots: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on nothing but their own address.

    Args:
        seed: any int64.
        stream: which independent set of numbers.
        index: (n,) int64, the image's number.
        slots: how many numbers an image.

    Returns:
        (n, slots) float32, multiples of 2^-24.
    """
    start = torch.tensor([seed, stream], device=index.device)
    key = _scramble(_scramble(start[0] + _GOLDEN) + start[1] + _GOLDEN)
    image = _scramble(key + index * _GOLDEN)
    counter = torch.arange(1, slots + 1, device=index.device) * _GOLDEN
    return _shift(_scramble(image[:, None] + counter), 40).float() * 2.0**-24


SLOTS = (
    "label hue brightness polarity scale x y rotation "
    "background_hue background_chroma background_brightness "
    "wave_1_frequency wave_1_angle wave_1_phase wave_1_hue wave_1_height "
    "wave_2_frequency wave_2_angle wave_2_phase wave_2_hue wave_2_height "
    "second_label second_hue second_brightness second_scale second_direction "
    "second_distance second_rotation second_in_front says_size says_place"
).split()


@dataclass(frozen=True)
class Variant:
    """What a set of images has in it.

    Args:
        rotation: largest rotation either way, radians.
        textured: whether two waves run over the background.
        clutter: whether there is a second, smaller object.
    """

    rotation: float
    textured: bool
    clutter: bool


VARIANTS: dict[str, Variant] = {
    "plain": Variant(math.pi / 4, False, False),
    "plain_rotated": Variant(math.pi, False, False),
    "textured": Variant(math.pi / 4, True, False),
    "textured_rotated": Variant(math.pi, True, False),
    "clutter": Variant(math.pi, True, True),
}


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def held_out(label: Tensor, bucket: Tensor) -> Tensor:
    """Which pairs of class and hue a world of "seen" combinations never shows.

    Each class misses one of the six hues, so that 8 of 48 pairs are new at test time.

    Args:
        label: (n,) int64, the class.
        bucket: (n,) int64, the hue's place in `HUES`; `hue_bucket(hue)`.

    Returns:
        (n,) bool.
    """
    return label % len(HUES) == bucket


def hue_bucket(hue: Tensor) -> Tensor:
    """The place in `HUES` of a hue in [0, 1), any shape; each is a sixth, centred."""
    return (hue * 6 + 0.5).floor().long() % 6


def _hue(u: Tensor, label: Tensor, combinations: str) -> Tensor:
    """A hue in [0, 1): any, only the held-out sixth, or only the five others."""
    if combinations == "all":
        return u
    # stay off the edge of the sixth: rounding must not carry a hue across it
    inside = _between(u, 1e-4, 1 - 1e-4)
    offset = inside if combinations == "held_out" else 1 + 5 * inside
    return ((label % len(HUES) + offset - 0.5) / 6) % 1


def make_factors(
    u: dict[str, Tensor], variant: Variant, combinations: str
) -> dict[str, Tensor]:
    """Turn an image's uniform numbers into what is drawn.

    Args:
        u: for each name in `SLOTS` the uniform numbers (n,).
        variant: the set of images.
        combinations: "all", "seen" or "held_out" pairs of class and hue.

    Returns:
        the factors (n,) each: lengths in half image widths, angles in radians
        clockwise, hues in turns, brightness within [-1, 1].
    """
    f = _object(u, variant, combinations) | _background(u)
    f["background_brightness"] = f["background_brightness"] * -f["brightness"].sign()
    if variant.textured:
        f |= _waves(u)
    # the second object may show anything, but no pair that is held out
    others = "seen" if combinations == "seen" else "all"
    return f | _second(u, f, others) if variant.clutter else f


def _object(u: dict[str, Tensor], variant: Variant, combinations: str) -> dict:
    label = (u["label"] * len(NAMES)).long()
    scale = _between(u["scale"], 0.48, 0.78)
    room = 0.98 - scale
    return {
        "label": label,
        "hue": _hue(u["hue"], label, combinations),
        "brightness": _between(u["brightness"], 0.2, 0.45)
        * (2 * (u["polarity"] < 0.5) - 1),
        "scale": scale,
        "x": _between(u["x"], -1, 1) * room,
        "y": _between(u["y"], -1, 1) * room,
        "rotation": _between(u["rotation"], -variant.rotation, variant.rotation),
    }


def _background(u: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "background_hue": u["background_hue"],
        "background_chroma": _between(u["background_chroma"], 0.0, 0.25),
        "background_brightness": _between(u["background_brightness"], 0.2, 0.45),
    }


def _waves(u: dict[str, Tensor]) -> dict[str, Tensor]:
    """Frequency in cycles an image, height in units of the image."""
    f = {}
    for wave in ("wave_1_", "wave_2_"):
        f[wave + "frequency"] = _between(u[wave + "frequency"], 1.0, 4.0)
        f[wave + "angle"] = math.pi * u[wave + "angle"]
        f[wave + "phase"] = 2 * math.pi * u[wave + "phase"]
        f[wave + "hue"] = u[wave + "hue"]
        f[wave + "height"] = _between(u[wave + "height"], 0.08, 0.2)
    return f


def _second(
    u: dict[str, Tensor], f: dict[str, Tensor], combinations: str
) -> dict[str, Tensor]:
    """A smaller object that touches the first from the side with more room."""
    label = (u["second_label"] * len(NAMES)).long()
    scale = _between(u["second_scale"], 0.25, 0.4)
    turn = _between(u["second_direction"], -2.0, 2.0)
    c, s = turn.cos(), turn.sin()
    distance = f["scale"] + _between(u["second_distance"], 0.0, 0.6) * scale
    from_centre = (f["x"] * f["x"] + f["y"] * f["y"]).sqrt().clamp(min=1e-6)
    inward_x, inward_y = -f["x"] / from_centre, -f["y"] / from_centre
    return {
        "second_label": label,
        "second_hue": _hue(u["second_hue"], label, combinations),
        "second_brightness": _between(u["second_brightness"], -0.45, 0.45),
        "second_scale": scale,
        "second_x": f["x"] + distance * (inward_x * c - inward_y * s),
        "second_y": f["y"] + distance * (inward_x * s + inward_y * c),
        "second_rotation": _between(u["second_rotation"], -math.pi, math.pi),
        "second_in_front": (u["second_in_front"] < 0.5).long(),
    }


def check_combinations(name: str) -> str:
    """The name itself if it is "all", "seen" or "held_out", else a ValueError."""
    accepted = ("all", "seen", "held_out")
    if name not in accepted:
        raise unknown(name, accepted, "combinations")
    return name
