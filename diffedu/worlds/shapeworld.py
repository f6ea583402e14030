"""ShapeWorld: small colour images drawn on the fly, with every label exact.

Eight shapes whose class cannot be read off the pixels by a linear rule, at any
size, with factors, parts, keypoints, depth order, captions and pairs of views.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from diffedu.errors import lookup, require
from diffedu.worlds.shapes.batch import Batches, ShapeBatch
from diffedu.worlds.shapes.factors import (
    HUES,
    SLOTS,
    VARIANTS,
    check_combinations,
    held_out,
    hue_bucket,
    make_factors,
    uniforms,
)
from diffedu.worlds.shapes.outlines import NAMES, SHAPES, symmetries
from diffedu.worlds.shapes.painter import PARTS
from diffedu.worlds.shapes.scene import Labels, describe, draw, layers
from diffedu.worlds.shapes.words import (
    VOCABULARY,
    attributes,
    decode,
    encode,
    tokens,
)

__all__ = [
    "HUES",
    "NAMES",
    "PARTS",
    "SHAPES",
    "SLOTS",
    "VARIANTS",
    "VOCABULARY",
    "Batches",
    "ShapeBatch",
    "ShapeWorld",
    "attributes",
    "decode",
    "encode",
    "held_out",
    "hue_bucket",
    "symmetries",
]

SIZES = range(12, 129)
# images are drawn in blocks that fit a processor's cache
_PIXELS_A_BLOCK = 2**15


class ShapeWorld:
    """An endless, numbered set of images; image i depends on (seed, i) alone.

    The same number shows the same scene at every size. Ranges of numbers that do
    not overlap make train and test sets.

    Args:
        size: pixels a side, 12 to 128; the course uses 16, 24 and 32.
        variant: "plain" (flat background, rotation within 45 degrees),
            "plain_rotated" (any rotation), "textured", "textured_rotated", or
            "clutter" (textured, any rotation, a second object).
        seed: any whole number that fits 64 bits.
        combinations: "all" pairs of class and hue, "seen" or "held_out" ones.
        device: where to draw.

    Raises:
        ValueError: if the size, the variant, the seed or the combinations are not such.
    """

    def __init__(
        self,
        size: int = 16,
        variant: str = "plain",
        seed: int = 0,
        combinations: str = "all",
        device: torch.device | str = "cpu",
    ):
        require(
            _is_whole(size) and size in SIZES,
            f"size is {size!r}; accepted: whole numbers from 12 to 128, try 16",
        )
        require(
            _is_whole(seed) and -(2**63) <= seed < 2**63,
            f"seed is {seed!r}; it must be a whole number of 64 bits",
        )
        self.size, self.seed, self.device = size, seed, torch.device(device)
        self.variant = variant
        self.contents = lookup(VARIANTS, variant, "variant")
        self.combinations = check_combinations(combinations)

    def factors(self, n: int, start: int = 0) -> dict[str, Tensor]:
        """The factors (n,) of images start to start + n - 1, without drawing them.

        Args, Raises: as `batch`.
        """
        return self._factors(self._uniforms(self._index(n, start)))

    def images(self, n: int, start: int = 0) -> Tensor:
        """Only the images (n, 3, s, s) float32 in [-1, 1], the fastest way.

        Args, Raises: as `batch`.
        """
        return self.images_and_labels(n, start)[0]

    def images_and_labels(self, n: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Images (n, 3, s, s) and classes (n,) int64, as fast as `images`.

        Args, Raises: as `batch`.
        """
        f, size = self.factors(n, start), self.size
        drawn = [draw(block, size, layers(block, size)) for block in self._blocks(f)]
        return torch.cat(drawn), f["label"]

    def batch(self, n: int, start: int = 0) -> ShapeBatch:
        """Images start to start + n - 1 with all their labels.

        Args:
            n: how many.
            start: the number of the first.

        Returns:
            a ShapeBatch of n images.

        Raises:
            ValueError: if n < 1, start < 0, or one is not a whole number.
        """
        index = self._index(n, start)
        return self._labelled(index, self._uniforms(index))

    def two_views(
        self,
        n: int,
        start: int = 0,
        keep: Collection[str] = ("label", "hue", "scale"),
    ) -> tuple[ShapeBatch, ShapeBatch]:
        """Two images of each object: what `keep` names is equal, the rest is new.

        The first view is `batch(n, start)`.

        Args:
            n, start: as `batch`.
            keep: names of `SLOTS`; brightness has its sign from "polarity", and
                unless combinations are "all" the hue depends on the label too.

        Returns:
            two ShapeBatches of n images.

        Raises:
            ValueError: if a name is unknown, or as `batch`.
        """
        index = self._index(n, start)
        first, second = (self._uniforms(index, stream) for stream in (0, 1))
        for name in (keep,) if isinstance(keep, str) else keep:
            second[name] = lookup(first, name, "factor")
        return self._labelled(index, first), self._labelled(index, second)

    def batches(self, batch_size: int, start: int = 0) -> Batches:
        """An endless iterator of (images, label) that can resume from any number.

        Args:
            batch_size: images a batch.
            start: the number of the first image.

        Returns:
            a Batches, whose `.next_index` is the number it goes on from.

        Raises:
            ValueError: as `batch`.
        """
        self._index(batch_size, start)
        return Batches(self, batch_size, start)

    def _index(self, n: int, start: int) -> Tensor:
        require(_is_whole(n) and n >= 1, f"n is {n!r}; it must be 1 or more")
        require(
            _is_whole(start) and 0 <= start < 2**62,
            f"start is {start!r}; it must be 0 or more",
        )
        return torch.arange(start, start + n, device=self.device)

    def _uniforms(self, index: Tensor, stream: int = 0) -> dict[str, Tensor]:
        table = uniforms(self.seed, stream, index, len(SLOTS))
        return dict(zip(SLOTS, table.unbind(1), strict=True))

    def _factors(self, u: dict[str, Tensor]) -> dict[str, Tensor]:
        return make_factors(u, self.contents, self.combinations)

    def _blocks(self, f: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """The factors again, a few images at a time."""
        step = max(1, _PIXELS_A_BLOCK // self.size**2)
        for first in range(0, len(f["label"]), step):
            yield {name: value[first : first + step] for name, value in f.items()}

    def _labelled(self, index: Tensor, u: dict[str, Tensor]) -> ShapeBatch:
        f = self._factors(u)
        images, labels = [], []
        for block in self._blocks(f):
            objects = layers(block, self.size)
            images.append(draw(block, self.size, objects))
            labels.append(describe(block, objects))
        caption = tokens(attributes(f), u["says_size"] < 0.5, u["says_place"] < 0.5)
        return ShapeBatch(
            index=index,
            images=torch.cat(images),
            label=f["label"],
            factors=f,
            caption=caption,
            **{
                name: torch.cat([getattr(block, name) for block in labels])
                for name in Labels._fields
            },
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
