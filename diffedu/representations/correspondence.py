"""Which point of one image is which point of another: the nearest features.

Points are (x, y) in [-1, 1] as a ShapeBatch's keypoints: pixel column (x + 1) s / 2 -
1/2. How good the answers are is `keypoints.pck`'s question.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu import features
from diffedu.errors import require, require_finite


def dift(
    denoise: nn.Module,
    images: Tensor,
    t: float,
    block: str,
    *,
    draws: int = 8,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """Feature maps of one block at one time, averaged over noises.

    Args:
        denoise: a Denoiser, or a wrapper of one.
        images: clean, shape (N, C, s, s).
        t: the time in (0, 1].
        block: a name of `features.blocks_of(denoise)`.
        draws: how many noises; the paper's are 8.
        generator: source of the noise.
        **condition: passed to the denoiser, such as `caption=words`.

    Returns:
        shape (N, channels, h, w).

    Raises:
        ValueError: as `features.extract`, or if the block's state is no map.

    Source: (arXiv 2306.03881).
    """
    seen = features.extract(
        denoise, images, t, [block], pool="none", draws=draws, generator=generator,
        **condition,
    )[block]  # fmt: skip
    return _map(seen, block)


def standardise(maps: Tensor) -> Tensor:
    """Each channel of each image with mean 0 and standard deviation 1 over places.

    What all places of an image share (its hue, its brightness) is taken away.

    Args:
        maps: shape (N, C, h, w).

    Returns:
        shape (N, C, h, w).
    """
    centred = _map(maps, "maps") - maps.mean((2, 3), keepdim=True)
    spread = centred.square().mean((2, 3), keepdim=True).sqrt()
    return centred / spread.clamp(min=1e-6)


def describe(maps: Tensor, points: Tensor) -> Tensor:
    """The features at points between pixel centres, interpolated bilinearly.

    Args:
        maps: shape (N, C, h, w).
        points: (x, y) in [-1, 1], shape (N, K, 2).

    Returns:
        shape (N, K, C).

    Raises:
        ValueError: if the shapes do not fit.
    """
    fits = points.dim() == 3 and points.shape[-1] == 2 and len(points) == len(maps)
    require(
        fits,
        f"points must have shape ({len(maps)}, K, 2), got {tuple(points.shape)}",
    )
    at = points[:, :, None].to(maps)
    read = F.grid_sample(
        _map(maps, "maps"), at, padding_mode="border", align_corners=False
    )
    return read[..., 0].transpose(1, 2)


def similarity(
    source: Tensor, target: Tensor, points: Tensor, grid: int | None = None
) -> Tensor:
    """How much every place of the target looks like each point of the source.

    Args:
        source: feature maps (N, C, h, w).
        target: feature maps (N, C, h', w').
        points: of the source, (N, K, 2).
        grid: the target's map is first enlarged to this many pixels a side; None
            keeps its own.

    Returns:
        cosines, shape (N, K, grid, grid).

    Raises:
        ValueError: if the shapes do not fit, or a feature is not finite.
    """
    require(
        source.shape[:2] == target.shape[:2],
        f"source has shape {tuple(source.shape)} and target {tuple(target.shape)}; "
        "they need equal numbers of images and of channels",
    )
    require_finite(source, "source")
    require_finite(target, "target")
    if grid is not None:
        target = enlarge(target, grid)
    asked = F.normalize(describe(source, points), dim=-1)
    return torch.einsum("nkc,nchw->nkhw", asked, F.normalize(target, dim=1))


def enlarge(maps: Tensor, grid: int) -> Tensor:
    """Feature maps (N, C, h, w) on a grid of `grid` pixels a side, bilinearly."""
    require(grid >= 1, f"grid is {grid}; it must be 1 or more")
    return F.interpolate(_map(maps, "maps"), size=(grid, grid), mode="bilinear")


def peaks(scores: Tensor) -> Tensor:
    """Where each map is highest.

    Args:
        scores: shape (N, K, h, w).

    Returns:
        the centre (x, y) of that pixel, shape (N, K, 2).
    """
    height, width = scores.shape[-2:]
    best = scores.flatten(2).argmax(2)
    column, row = best % width, best // width
    x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
    return torch.stack([x, y], -1)


def match(
    source: Tensor, target: Tensor, points: Tensor, grid: int | None = 32
) -> Tensor:
    """For each point of the source the nearest place of the target, by cosine.

    Args:
        source: feature maps (N, C, h, w).
        target: feature maps (N, C, h', w').
        points: of the source, (N, K, 2) in [-1, 1].
        grid: pixels a side of the target's enlarged map.

    Returns:
        points of the target, (N, K, 2).

    Raises:
        ValueError: as `similarity`.

    Source: p2 = argmax cos(F2[p], F1[p1]) (arXiv 2306.03881).
    """
    return peaks(similarity(source, target, points, grid))


def fuse(a: Tensor, b: Tensor, weight: float = 0.5) -> Tensor:
    """Two feature maps as one, each with its vectors scaled to length 1 first.

    Args:
        a: shape (N, C, h, w); its grid is the result's.
        b: shape (N, C', h', w').
        weight: of a, in [0, 1]; b has the rest.

    Returns:
        shape (N, C + C', h, w).

    Raises:
        ValueError: if the weight is out of range or the numbers of images differ.

    Source: [weight F_a / |F_a|, (1 - weight) F_b / |F_b|] (arXiv 2305.15347).
    """
    require(0 <= weight <= 1, f"weight is {weight}; it must be in [0, 1]")
    require(len(a) == len(b), f"{len(a)} and {len(b)} images cannot be paired")
    a, b = _map(a, "a"), _map(b, "b")
    if a.shape[2:] != b.shape[2:]:
        b = F.interpolate(b, size=a.shape[2:], mode="bilinear")
    parts = (weight * F.normalize(a, dim=1), (1 - weight) * F.normalize(b, dim=1))
    return torch.cat(parts, 1)


def _map(maps: Tensor, name: str) -> Tensor:
    """The maps themselves; ValueError unless they are (N, C, h, w)."""
    require(
        maps.dim() == 4,
        f"{name} must be feature maps (N, C, h, w), got {tuple(maps.shape)}; extract "
        'with pool="none" from a network with convolutions',
    )
    return maps
