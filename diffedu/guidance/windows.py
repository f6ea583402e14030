"""MultiDiffusion: one large image from a small model's views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require
from diffedu.guidance.base import Guidance
from diffedu.prediction import Prediction

Pair = tuple[int, int]


class MultiDiffusion(Guidance):
    """A denoiser of large images that asks a small one about each window.

    Where windows overlap they disagree. The answer is the image that comes closest to
    all of them in the least-squares sense, which pixel by pixel is their mean. Taken
    of the predictions it is the mean of the steps too, as a step of DDIM (and of
    every sampler here, with one noise for all) is linear in the prediction.

    Args:
        inner: a denoiser of images (B, C, size, size).
        size: height and width of a window in pixels, or one number for both.
        stride: pixels from one window to the next, or (down, across). The last
            window is moved to end with the image.
        weight: how much each pixel of a window counts, shape (height, width), above 0.
        conditions: one more condition for each window, row by row from the top left,
            such as `[{"label": a}, {"label": b}]`.

    Raises:
        ValueError: if a stride leaves gaps, or an image is smaller than a window.

    Source: (arXiv 2302.08113).
    """

    def __init__(
        self,
        inner: DenoiserBase,
        size: int | Pair,
        stride: int | Pair,
        weight: Tensor | None = None,
        conditions: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__(inner)
        self.size, self.stride = _pair(size, "size"), _pair(stride, "stride")
        ok = all(
            step <= side for step, side in zip(self.stride, self.size, strict=True)
        )
        require(ok, f"a stride of {stride} leaves gaps between windows of {size}")
        weight = torch.ones(self.size) if weight is None else weight
        ok = weight.shape == self.size and bool((weight > 0).all())
        require(ok, f"weight needs shape {self.size} and values above 0")
        self.register_buffer("weight", weight, persistent=False)
        self.conditions = conditions

    def corners(self, height: int, width: int) -> list[Pair]:
        """The (top, left) pixels of all windows of an image, row by row."""
        grid = zip((height, width), self.size, self.stride, strict=True)
        tops, lefts = (_starts(*axis) for axis in grid)
        return [(top, left) for top in tops for left in lefts]

    def plain(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Raises ValueError: without windows, x (B, C, H, W) fits no small model."""
        raise ValueError("windows can't be left out; limit the rule inside of them")

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, C, H, W), at t of shape () or (B,)."""
        require(x.dim() == 4, f"windows are cut from (B, C, H, W), got {x.shape}")
        corners = self.corners(*x.shape[2:])
        told = self.conditions or [{}] * len(corners)
        fits = len(told) == len(corners)
        require(fits, f"{len(told)} conditions given for {len(corners)} windows")
        weight = self.weight.to(x)
        total, count = torch.zeros_like(x), x.new_zeros(x.shape[2:])
        for (top, left), extra in zip(corners, told, strict=True):
            place = (..., *_slices(top, left, self.size))
            seen = self.inner(x[place], t, **{**condition, **extra})
            total[place] += weight * seen.value
            count[place] += weight
        return Prediction(x, seen.t, self.schedule, seen.kind, total / count)


def _pair(value: int | Pair, name: str) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    ok = len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair)
    require(ok, f"{name} must be one or two whole numbers above 0, got {value!r}")
    return pair


def _slices(top: int, left: int, size: Pair) -> tuple[slice, slice]:
    return slice(top, top + size[0]), slice(left, left + size[1])


def _starts(whole: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis; the last one ends with the image."""
    require(whole >= window, f"an image of {whole} pixels has no window of {window}")
    starts = list(range(0, whole - window + 1, stride))
    last = whole - window
    return starts if starts[-1] == last else [*starts, last]
