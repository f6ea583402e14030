"""The one object of the library: it looks at x_t and says what was there.

A `Denoiser` is a network on a path. Whatever makes, wraps, walks or looks inside a
denoiser needs only this call: `denoise(x_t, t)` answers a `Prediction`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffedu.errors import capturing, lookup, require
from diffedu.prediction import PARAMETRISATIONS, Prediction, edm, for_batch
from diffedu.schedules import Schedule
from diffedu.schedules.path import as_time


def checked_inputs(x: Tensor, t: Tensor | float) -> Tensor:
    """The time as a tensor, after what every denoiser asks of x (B, ...) and t."""
    # once a step in every walk: messages are made only when they are needed
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(
            f"x_t must be floating and have shape (B, ...) with at least 2 axes; got "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )
    t = as_time(t)
    if t.dim() > 0 and t.shape != x.shape[:1]:
        raise ValueError(
            f"t must have shape () or ({x.shape[0]},) for a batch of shape "
            f"{tuple(x.shape)}; got {tuple(t.shape)}"
        )
    if not capturing() and not bool(t.all()):
        raise ValueError("nothing is denoised at t = 0, where x_t is the data itself")
    return t


class DenoiserBase(nn.Module):
    """What every denoiser shares: a path, and a call that answers a Prediction."""

    schedule: Schedule

    def on(self, schedule: Schedule) -> OnPath:
        """The same denoiser on another path: equal log-SNR, x rescaled."""
        return OnPath(self, schedule)


class Denoiser(DenoiserBase):
    """A network on a path: `denoise(x_t, t, label=y)` answers a Prediction.

    Args:
        net: called as `net(x, t, **condition)`, with t of shape (B,); one tensor of x's
            shape comes back (twice the channels if it learns a variance). With
            `predicts="edm"` it gets the scaled input and ln(sigma / alpha) / 4.
        schedule: the path that x_t lies on.
        predicts: eps, x0, v, score, velocity or edm.
        sigma_data: the data's standard deviation, for edm alone.
        learns_variance: whether the second half of the net's channels, in [-1, 1],
            places its variance between the two bounds (arXiv 2102.09672, eq. 15).

    Raises:
        ValueError: for an unknown `predicts`, a wrong shape, or t not in (0, 1].
    """

    def __init__(
        self,
        net: nn.Module | Callable[..., Tensor],
        schedule: Schedule,
        predicts: str = "eps",
        sigma_data: float = 0.5,
        learns_variance: bool = False,
    ) -> None:
        super().__init__()
        lookup(PARAMETRISATIONS, predicts, "parametrisation")
        a_path = isinstance(schedule, Schedule)
        require(a_path, f"{schedule!r} is no Schedule; try schedules.cosine()")
        self.net, self.schedule, self.predicts = net, schedule, predicts
        self.sigma_data, self.learns_variance = sigma_data, learns_variance
        edm_kind = predicts == "edm"
        self.kind = edm(sigma_data) if edm_kind else PARAMETRISATIONS[predicts]

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,); None is dropped."""
        t = checked_inputs(x, t)
        given = {name: c for name, c in condition.items() if c is not None}
        out = self.net(*self._net_inputs(x, t), **given)
        fraction = None
        if self.learns_variance:
            self._require_shape(out, (x.shape[0], 2 * x.shape[1], *x.shape[2:]))
            out, fraction = out.chunk(2, dim=1)
            fraction = (fraction + 1) / 2
        self._require_shape(out, tuple(x.shape))
        return Prediction(x, t, self.schedule, self.kind, out, fraction)

    def _net_inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x and t as the network wants them: t (B,), or EDM's scaled pair."""
        if self.predicts != "edm":
            return x, t.to(x.dtype).to(x.device).expand(x.shape[0])
        alpha, sigma = self.schedule.coefficients(t)
        require(
            capturing() or bool((alpha > 0).all()),
            "EDM's network is told ln(sigma / alpha), and alpha is 0 here; start at "
            f"schedule.t_max = {self.schedule.t_max:g}",
        )
        scale = torch.rsqrt(sigma**2 + (self.sigma_data * alpha) ** 2)
        c_noise = (sigma / alpha).log() / 4
        c_noise = c_noise.to(x.dtype).to(x.device).expand(x.shape[0])
        return for_batch(scale, x) * x, c_noise

    def _require_shape(self, out: Tensor, shape: tuple[int, ...]) -> None:
        if out.shape != shape:
            raise ValueError(
                f"the network answered shape {tuple(out.shape)} where {shape} is "
                f"needed; learns_variance is {self.learns_variance}"
            )


class OnPath(DenoiserBase):
    """A denoiser moved to another path: same log-SNR, x scaled to fit.

    Args:
        inner: any denoiser.
        schedule: the path on which it is to be called.
    """

    def __init__(self, inner: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.inner, self.schedule = inner, schedule

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) of the new path at t of shape () or (B,)."""
        t = checked_inputs(x, t)
        t_inner = self.inner.schedule.time_of_log_snr(self.schedule.log_snr(t))
        scale_inner = torch.hypot(*self.inner.schedule.coefficients(t_inner))
        ratio = scale_inner / torch.hypot(*self.schedule.coefficients(t))
        ratio = for_batch(ratio, x)
        seen = self.inner(x * ratio, t_inner, **condition)
        fraction = seen.variance_fraction
        # v is the one reading that is well conditioned at both ends of every path
        return Prediction(x, t, self.schedule, "v", seen.v * (1 / ratio), fraction)


class Clipped(DenoiserBase):
    """A denoiser whose x0 stays within the range of the data; eps follows from it.

    Args:
        inner: any denoiser.
        low: the smallest value of the data.
        high: the largest value of the data.

    Source: (arXiv 2006.11239, released code: x0 is clipped in every step).
    """

    def __init__(self, inner: nn.Module, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        require(low < high, f"clipping needs low < high, got {low} and {high}")
        self.inner, self.schedule = inner, inner.schedule
        self.low, self.high = low, high

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,)."""
        seen = self.inner(x, t, **condition)
        x0 = seen.x0.clamp(self.low, self.high)
        fraction = seen.variance_fraction
        return Prediction(x, seen.t, self.schedule, "x0", x0, fraction)
