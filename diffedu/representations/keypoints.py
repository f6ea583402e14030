"""Pairs of images whose points are known, and how well points were found: PCK.

The image is 2 wide in the units of the points, so a tenth of it is a distance of 0.2.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from diffedu.errors import lookup, require
from diffedu.worlds.shapeworld import NAMES, ShapeWorld, symmetries

WIDTH = 2.0  # of the image, in the units of the points
ONE_MIRROR = ("triangle", "crescent", "tee")  # shapes with one axis and no more


@dataclass(frozen=True)
class Pairs:
    """Pairs of images of one class each, with five points that correspond.

    Args:
        source: images (N, 3, s, s).
        target: images (N, 3, s, s).
        points: of the source, (N, 5, 2).
        truth: the same points in the target, (N, 5, 2).
        asked: points seen in the source, (N, 5) bool.
        visible: points seen in the target, (N, 5) bool.
        symmetry: renamings that keep the outline, (N, G, 5) int64.
        label: the class, (N,) int64.
        inside: pixels of the target's object, (N, s, s) bool.
    """

    source: Tensor
    target: Tensor
    points: Tensor
    truth: Tensor
    asked: Tensor
    visible: Tensor
    symmetry: Tensor
    label: Tensor
    inside: Tensor

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.label)

    def __getitem__(self, rows: Tensor | slice) -> Pairs:
        """Some of the pairs, by a slice, indices (n,) or a mask (N,)."""
        parts = {each.name: getattr(self, each.name)[rows] for each in fields(self)}
        return Pairs(**parts)

    @property
    def both(self) -> Tensor:
        """All images, the sources first, (2 N, 3, s, s)."""
        return torch.cat([self.source, self.target])

    def score(self, found: Tensor, share: float = 0.1, mirror: bool = True) -> Tensor:
        """The PCK of each pair, (N,), for points found in the targets (N, 5, 2).

        `share` is of the image; without `mirror` each point keeps its own name.
        """
        return pck(
            found,
            self.truth,
            share=share,
            asked=self.asked,
            visible=self.visible,
            symmetry=self.symmetry if mirror else None,
        )


def shape_pairs(
    world: ShapeWorld,
    n: int,
    start: int = 0,
    keep: Collection[str] = ("label", "polarity"),
    shapes: Sequence[str] = ONE_MIRROR,
) -> Pairs:
    """Pairs of two objects of one class out of a ShapeWorld.

    Args:
        world: what is drawn.
        n: how many pairs.
        start: number of the first image; the world's numbers from there on are
            searched for objects of these shapes.
        keep: factors that both have in common, as in `two_views`; the label must
            be one. With "polarity" both are brighter than their backgrounds, or both
            are darker.
        shapes: names of the classes.

    Returns:
        n Pairs.

    Raises:
        ValueError: if a shape is unknown, the label is not kept, or n < 1.
    """
    require("label" in keep, f"keep is {tuple(keep)}; it must have the label in it")
    wanted = torch.tensor([lookup(_NUMBER, name, "shape") for name in shapes])
    many = 2 * n * len(NAMES) // len(wanted) + 40
    right = torch.isin(world.factors(many, start)["label"].cpu(), wanted)
    rows = right.nonzero()[:n, 0]
    require(len(rows) == n, f"only {len(rows)} of {n} pairs were found; ask for fewer")
    first, second = world.two_views(int(rows[-1]) + 1, start, keep)
    pairs = Pairs(
        source=first.images,
        target=second.images,
        points=first.keypoints,
        truth=second.keypoints,
        asked=first.visible,
        visible=second.visible,
        symmetry=permutations(first.label),
        label=first.label,
        inside=second.parts > 0,
    )
    return pairs[rows.to(first.label.device)]


_NUMBER = {name: place for place, name in enumerate(NAMES)}


def any_inside(
    inside: Tensor, k: int, generator: torch.Generator | None = None
) -> Tensor:
    """Random pixels of each object: the guess of one who knows only where it is.

    Args:
        inside: pixels of the objects, (N, s, s) bool, at least one in each.
        k: points an image.
        generator: source of the draws.

    Returns:
        points (N, k, 2).
    """
    size = inside.shape[-1]
    pixels = torch.multinomial(inside.flatten(1).float(), k, True, generator=generator)
    places = torch.stack([pixels % size, pixels // size], -1)
    return (2 * places + 1) / size - 1


def permutations(label: Tensor) -> Tensor:
    """The keypoint symmetries of each image's shape.

    Args:
        label: (N,) int64, places in `worlds.shapeworld.NAMES`.

    Returns:
        (N, G, 5) int64, the identity first, and again where a shape has fewer.
    """
    groups = [symmetries(name) for name in NAMES]
    most = max(map(len, groups))
    padded = [torch.cat([g, g[:1].expand(most - len(g), -1)]) for g in groups]
    return torch.stack(padded).to(label.device)[label]


def pck(
    found: Tensor,
    truth: Tensor,
    *,
    share: float = 0.1,
    extent: Tensor | float = WIDTH,
    asked: Tensor | None = None,
    visible: Tensor | None = None,
    symmetry: Tensor | None = None,
) -> Tensor:
    """The percentage of correct keypoints, of each pair by itself, as a share.

    A point is correct within `share` times the extent. A pair may be scored under
    any one symmetry of its shape, the same for all of its points: the best counts.

    Args:
        found: where the points were placed, (N, K, 2).
        truth: where they are, (N, K, 2).
        share: of the extent, above 0.
        extent: of what the share is taken: the image's width, 2, or (N,), such as
            the object's size.
        asked: points that are seen in the source, (N, K) bool; None is all.
        visible: points that are seen in the target, (N, K) bool; None is all.
        symmetry: allowed renamings of the target's points, (N, G, K) int64, as
            `permutations` gives them; None is none.

    Returns:
        shape (N,), in [0, 1].

    Raises:
        ValueError: if shapes differ, the share is not above 0, or a pair has no point
            that can be scored.
    """
    require(
        found.shape == truth.shape and found.dim() == 3 and found.shape[-1] == 2,
        f"found and truth must both be (N, K, 2), got {tuple(found.shape)} and "
        f"{tuple(truth.shape)}",
    )
    require(share > 0, f"share is {share}; it must be above 0, such as 0.1")
    n, k = found.shape[:2]
    everything = torch.ones(n, k, dtype=torch.bool, device=found.device)
    asked = everything if asked is None else asked
    visible = everything if visible is None else visible
    if symmetry is None:
        symmetry = torch.arange(k, device=found.device).expand(n, 1, k)
    rows = torch.arange(n, device=found.device)[:, None, None]
    near = (found[:, None] - truth[rows, symmetry]).norm(dim=-1)
    radius = share * torch.as_tensor(extent, device=found.device).expand(n)
    counted = asked[:, None] & visible[rows, symmetry]
    require(
        bool(counted.any(2).any(1).all()),
        "a pair has no point that is seen in both images; leave such pairs out",
    )
    hits = (near <= radius[:, None, None]) & counted
    return (hits.sum(2) / counted.sum(2).clamp(min=1)).amax(1)
