"""A vector for every pixel: hidden states enlarged and stacked.

A hidden state is a small picture with many channels. Enlarged to the image's grid and
stacked, such pictures give each pixel a vector, and a small head reads a label off it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require, unknown
from diffedu.features import extract

MODES = ("bilinear", "nearest")


def upsample(h: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """Bring a hidden state to the image's grid, its pixels' centres where they were.

    Args:
        h: shape (B, C, H, W).
        size: pixels a side of the result.
        mode: "bilinear", or "nearest".

    Returns:
        shape (B, C, size, size).

    Raises:
        ValueError: if h is no picture, size is below 1, or the mode is unknown.
    """
    require(
        h.dim() == 4,
        f"a hidden state of pixels is (B, C, H, W), got {tuple(h.shape)}; a "
        "transformer's tokens need unflatten first",
    )
    require(size >= 1, f"size is {size}; it must be 1 or more")
    if mode not in MODES:
        raise unknown(mode, MODES, "mode")
    if mode == "nearest":
        return F.interpolate(h, (size, size), mode="nearest-exact")
    return F.interpolate(h, (size, size), mode="bilinear", align_corners=False)


def pixel_features(
    denoise: nn.Module,
    x0: Tensor,
    times: float | Sequence[float],
    blocks: Sequence[str] | None = None,
    *,
    size: int | None = None,
    draws: int = 1,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    **condition: Tensor | None,
) -> Tensor:
    """A vector for every pixel: hidden states enlarged and stacked over their channels.

    Args:
        denoise: a Denoiser of a network of pixels, or a wrapper of one.
        x0: clean images, shape (N, ..., s, s).
        times: one time in (0, 1], or several.
        blocks: names of blocks; None is all of `features.blocks_of`.
        size: pixels a side of the result; None is that of the images.
        draws: how many noises the features are averaged over.
        noise: recorded noise, as `features.extract` takes it.
        generator: source of fresh noise.
        batch_size: images looked at together.
        **condition: passed to the denoiser.

    Returns:
        shape (N, D, size, size): the channels of every block at the first time, then
        at the second, and so on.

    Raises:
        ValueError: as `features.extract`; also for hidden states that are no pictures.

    Source: (arXiv 2112.03126, section 3.2).
    """
    side = x0.shape[-1] if size is None else size
    several = [times] if isinstance(times, (int, float)) else list(times)
    found = extract(
        denoise,
        x0,
        several,
        blocks,
        pool=lambda h: upsample(h, side),
        draws=draws,
        noise=noise,
        generator=generator,
        batch_size=batch_size,
        **condition,
    )
    return torch.cat([h[k] for k in range(len(several)) for h in found.values()], 1)


def as_pixels(maps: Tensor) -> Tensor:
    """One row a pixel: (N, D, H, W) to (N H W, D), image after image, row after row."""
    require(
        maps.dim() == 4,
        f"pictures of features are (N, D, H, W), got {tuple(maps.shape)}",
    )
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def as_maps(rows: Tensor, size: int) -> Tensor:
    """The inverse for labels or scores: (N size size, ...) to (N, size, size, ...)."""
    require(
        size >= 1 and len(rows) % size**2 == 0,
        f"{len(rows)} rows are no whole number of images of {size} by {size} pixels",
    )
    return rows.unflatten(0, (-1, size, size))
