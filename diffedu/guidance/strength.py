"""When to guide, and away from what: the interval, and a weaker copy of the model."""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup, require
from diffedu.guidance.base import Guidance, Scale, checked_scale, mixed, read_as
from diffedu.prediction import Prediction
from diffedu.schedules.path import as_time
from diffedu.tensors import per_sample

# how each unit is read off the log-SNR
UNITS = {"sigma": lambda log_snr: (-log_snr / 2).exp(), "log_snr": lambda level: level}


class Interval(Guidance):
    """A rule that acts only at some noise levels; at all others its inner one speaks.

    Args:
        guided: a guidance rule, such as ClassifierFree(denoise, 3.0).
        low: the lowest level with guidance, not itself in the interval.
        high: the highest level with guidance.
        unit: "sigma" is EDM's, sigma / alpha; "log_snr" the path's log-SNR.

    Raises:
        ValueError: for an unknown unit, an empty interval, or no rule.

    Source: (arXiv 2404.07724).
    """

    def __init__(
        self, guided: Guidance, low: float, high: float, unit: str = "sigma"
    ) -> None:
        ok = isinstance(guided, Guidance)
        require(ok, f"an interval limits a guidance rule, got {type(guided).__name__}")
        super().__init__(guided)
        self.level_of = lookup(UNITS, unit, "unit")
        require(low < high, f"the interval ({low}, {high}] is empty")
        self.low, self.high = low, high

    def plain(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """What x (B, ...) at t () or (B,) looks like without the inner rule."""
        return self.inner.plain(x, t, **condition)

    def inside(self, t: Tensor | float) -> Tensor:
        """Whether times t, () or (B,), lie within the interval: bool, t's shape."""
        level = self.level_of(self.schedule.log_snr(as_time(t)))
        return (level > self.low) & (level <= self.high)

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,)."""
        inside = self.inside(t)
        if inside.dim() == 0:  # one time for all, as in every sampler
            look = self.inner if inside else self.plain
            return look(x, t, **condition)
        guided, plain = self.inner(x, t, **condition), self.plain(x, t, **condition)
        chosen = per_sample(inside.to(x.device), x)
        value = torch.where(chosen, read_as(guided, plain.kind), plain.value)
        fraction = plain.variance_fraction
        return Prediction(x, plain.t, self.schedule, plain.kind, value, fraction)


class Autoguidance(Guidance):
    """Guidance away from a worse version of the model itself: w + scale (d - w).

    Args:
        inner: the denoiser d.
        weak: a denoiser w of the same data that is worse in the same ways: smaller,
            or trained for less long. It may live on another path.
        scale: 0 is the weak one, 1 the inner one, above 1 guided; number or (B,).

    Both are told the condition, so that the two differ in quality alone.

    Source: (arXiv 2406.02507), whose w is this scale.
    """

    def __init__(self, inner: DenoiserBase, weak: DenoiserBase, scale: Scale) -> None:
        super().__init__(inner)
        whole = isinstance(weak, DenoiserBase)
        require(whole, f"{weak!r} is no denoiser; wrap a net as Denoiser(net, ...)")
        same = weak.schedule is inner.schedule
        self.weak = weak if same else weak.on(inner.schedule)
        self.scale = checked_scale(scale)

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,), with both."""
        strong = self.inner(x, t, **condition)
        return mixed(self.weak(x, t, **condition), strong, self.scale)
