"""What a ShapeWorld hands out: labelled images, and an endless iterator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from diffedu.worlds.shapes.words import decode

if TYPE_CHECKING:
    from diffedu.worlds.shapeworld import ShapeWorld


@dataclass(frozen=True)
class ShapeBatch:
    """Images with all that is known about them.

    Args:
        index: (n,) int64, the images' numbers.
        images: (n, 3, s, s) float32 in [-1, 1].
        label: (n,) int64, the shape's place in `NAMES`.
        factors: name to (n,); lengths in half image widths from the centre (x to
            the right, y down), angles in radians clockwise, hues in turns.
        parts: (n, s, s) int64, places in `PARTS`; 0 where the object is not seen.
        keypoints: (n, 5, 2) float32, (x, y) in [-1, 1], as `grid_sample` takes
            them with align_corners=False: pixel column (x + 1) s / 2 - 1/2.
        visible: (n, 5) bool, false where the second object hides the point.
        depth: (n, s, s) int64, 0 background, 1 the object (or the further of two),
            2 the nearer of two.
        caption: (n, 4) int64, ids in `VOCABULARY`; `decode(caption)` reads them.
    """

    index: Tensor
    images: Tensor
    label: Tensor
    factors: dict[str, Tensor]
    parts: Tensor
    keypoints: Tensor
    visible: Tensor
    depth: Tensor
    caption: Tensor

    def __len__(self) -> int:
        """How many images."""
        return len(self.index)

    def captions(self) -> list[str]:
        """The captions as text, two to four words each."""
        return decode(self.caption)


class Batches:
    """An endless iterator over a ShapeWorld: (images, label), batch after batch.

    Args:
        world: what is drawn.
        batch_size: images a batch.
        next_index: the number of the next image; save it to resume from here.
    """

    def __init__(self, world: ShapeWorld, batch_size: int, next_index: int = 0):
        self.world, self.batch_size, self.next_index = world, batch_size, next_index

    def __iter__(self) -> Batches:
        """Itself."""
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """The next images (b, 3, s, s) and classes (b,) int64."""
        pair = self.world.images_and_labels(self.batch_size, self.next_index)
        self.next_index += self.batch_size
        return pair
