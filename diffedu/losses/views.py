"""Views of an image for contrastive learning: what they share is what is learned.

Moves and a new paint leave a shape's class as it is. Paint matters most: hue is the
easiest thing to agree on, and features of views that share it group by hue.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from diffedu.errors import require

ZOOM, SHIFT = 1.25, 0.2  # at most so many times larger or smaller; half widths
SQUEEZE = 0.2  # colours keep at least this share of their distance


def augment(
    x: Tensor,
    generator: torch.Generator | None = None,
    *,
    geometry: bool = True,
    colour: bool = True,
) -> Tensor:
    """Another view of each image: moved (`move`), and painted anew (`recolour`).

    Args:
        x: images in [-1, 1], shape (B, C, H, W).
        generator: source of the random numbers.
        geometry: whether to move.
        colour: whether to recolour.

    Returns:
        images in [-1, 1], of x's shape.

    Raises:
        ValueError: if x is no batch of floating-point images.
    """
    _check_images(x)
    x = move(x, generator) if geometry else x
    return recolour(x, generator) if colour else x


def two_views(
    x: Tensor,
    generator: torch.Generator | None = None,
    *,
    geometry: bool = True,
    colour: bool = True,
) -> tuple[Tensor, Tensor]:
    """Two independent augmentations of the same images; arguments as `augment`."""
    first, second = (
        augment(x, generator, geometry=geometry, colour=colour) for _ in range(2)
    )
    return first, second


def move(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn, mirror, zoom and shift each image; its border goes on outside.

    The crop of this course: any angle, a mirror image in half of the cases, up to
    1.25 times larger or smaller, a shift of at most a tenth of the image.

    Args:
        x: images, shape (B, C, H, W).
        generator: source of the random numbers.

    Returns:
        x's shape.
    """
    n = len(x)
    angle = _uniform(x, (n,), 0, 2 * math.pi, generator)
    zoom = _uniform(x, (n,), -math.log(ZOOM), math.log(ZOOM), generator).exp()
    mirror = _uniform(x, (n,), -1, 1, generator).sign()
    shift = _uniform(x, (n, 2), -SHIFT, SHIFT, generator)
    c, s = angle.cos() * zoom, angle.sin() * zoom
    turn = torch.stack([c * mirror, -s, s * mirror, c], -1).view(n, 2, 2)
    grid = F.affine_grid(
        torch.cat([turn, shift[..., None]], -1), list(x.shape), align_corners=False
    )
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def recolour(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Send the colours of each image through a random affine map.

    Hue, polarity and brightness change, and so do the angles between colours, which
    a mere turn of the hue would keep: an image could be known again by them. Two
    colours stay at least a fifth of their distance apart before the last scaling.

    Args:
        x: images in [-1, 1], shape (B, C, H, W).
        generator: source of the random numbers.

    Returns:
        x's shape, scaled down where the map leaves [-1, 1].
    """
    n, channels = x.shape[:2]
    squeeze = _uniform(x, (n, channels), SQUEEZE, 1, generator)
    turns = _normal(x, (2, n, channels, channels), generator)
    first, second = torch.linalg.qr(turns).Q
    flips = _uniform(x, (n, channels), -1, 1, generator).sign()
    shift = _uniform(x, (n, channels, 1, 1), -0.3, 0.3, generator)
    matrix = first * (squeeze * flips)[:, None] @ second.mT
    painted = torch.einsum("bdc,bchw->bdhw", matrix, x) + shift
    return painted / painted.abs().amax((1, 2, 3), keepdim=True).clamp(min=1)


def _check_images(x: Tensor) -> None:
    require(
        isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point(),
        f"x is {getattr(x, 'dtype', type(x).__name__)} of shape "
        f"{tuple(getattr(x, 'shape', ()))}; views are made of floating-point images "
        "(B, C, H, W)",
    )


def _uniform(
    x: Tensor,
    shape: tuple[int, ...],
    low: float,
    high: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Uniform numbers in [low, high) of x's dtype, moved to its device."""
    device = generator.device if generator is not None else x.device
    u = torch.rand(shape, dtype=x.dtype, device=device, generator=generator)
    return (low + (high - low) * u).to(x.device)


def _normal(
    x: Tensor, shape: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    """Standard normal numbers of x's dtype, moved to its device."""
    device = generator.device if generator is not None else x.device
    return torch.randn(shape, dtype=x.dtype, device=device, generator=generator).to(
        x.device
    )
