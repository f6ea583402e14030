"""What all samplers share: a walk down a list of times, one `Step` at a time.

A sampler is written as a generator that yields each Step and receives the state to
go on from. Called, it returns the end; under `walk`, it shows the whole way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffedu.errors import require, require_finite
from diffedu.schedules import Schedule
from diffedu.tensors import normal_like

Denoise = Callable[..., Any]  # anything that answers a Prediction and has .schedule


@dataclass
class Step:
    """One step of a walk from time t to time s.

    Attributes:
        index: the number of the step, from 0.
        t: the time it left, shape ().
        s: the time it reached, shape ().
        x_t: the state it left, shape (B, ...).
        x: the state it reached, at s, shape (B, ...).
        x0: what the denoiser saw at t, shape (B, ...).
    """

    index: int
    t: Tensor
    s: Tensor
    x_t: Tensor
    x: Tensor
    x0: Tensor


After = Callable[[Tensor, Step], Tensor]
Walk = Generator[Step, Tensor, None]


class Noise:
    """Fresh or recorded standard noise: `noise(index, x)` has the shape of x."""

    def __init__(
        self,
        recorded: Tensor | None,
        generator: torch.Generator | None,
        times: Tensor,
        x: Tensor,
        extra: tuple[int, ...],
    ) -> None:
        shape = (len(times) - 1, *extra, *x.shape)
        if recorded is not None and tuple(recorded.shape) != shape:
            raise ValueError(
                f"recorded noise must have shape (steps, *x.shape) = {shape} here, "
                f"got {tuple(recorded.shape)}"
            )
        self.recorded, self.generator = recorded, generator

    def __call__(self, index: int | tuple[int, int], x: Tensor) -> Tensor:
        """The noise of a step, or of an inner step (index, inner), for x (B, ...)."""
        if self.recorded is None:
            return normal_like(x, self.generator)
        return self.recorded[index].to(x)


def checked_times(times: Tensor) -> Tensor:
    """Times of shape (N + 1,) as float64 on the CPU; ValueError unless they fall."""
    times = torch.as_tensor(times).detach().to("cpu").double()
    ok = times.dim() == 1 and len(times) >= 2
    require(ok, f"times must have shape (steps + 1,), got {tuple(times.shape)}")
    inside = bool(((times >= 0) & (times <= 1)).all())
    falling = bool((times.diff() < 0).all())
    require(
        inside and falling,
        "times must fall strictly from noise (at most 1) to data (at least 0); "
        "samplers.time_grid(schedule, steps) makes such a list",
    )
    return times


def require_signal(schedule: Schedule, times: Tensor) -> None:
    """ValueError if alpha is 0 at a time (N + 1,), for samplers that divide by it."""
    if bool((schedule.alpha(times) == 0).any()):
        raise ValueError(
            f'alpha is 0 at t={times[0]:g} on the path "{schedule.name}", and this '
            f"sampler divides by it; start at schedule.t_max = {schedule.t_max:g}, or "
            "take ddim, ancestral or dpm_solver_pp_2m with a net that predicts v"
        )


def steps_of(times: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """index, t and s of each step down the times (N + 1,)."""
    return ((i, t, s) for i, (t, s) in enumerate(pairwise(times.unbind())))


def _drive(steps: Walk, x: Tensor, after: After | None) -> Iterator[Step]:
    """Run a sampler's generator; gradients flow only if the start asks for them."""
    wants_grad = torch.is_grad_enabled() and x.requires_grad
    reply: Tensor | None = None
    while True:
        with torch.set_grad_enabled(wants_grad):
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if after is not None:
                step.x = after(step.x, step)
        reply = step.x
        yield step


def sampler(generator_function: Callable[..., Walk]) -> Callable[..., Tensor]:
    """Make a sampler of a generator of Steps: called, it returns the end of the walk.

    The result takes `after(x, step)`, called once a step, whose answer replaces x;
    `noise`, recorded; `generator`, for fresh noise; and the denoiser's conditions.
    """

    @functools.wraps(generator_function)
    def run(denoise: Denoise, x_T: Tensor, times: Tensor, **options: Any) -> Tensor:
        step = None
        for step in run.steps(denoise, x_T, times, **options):  # noqa: B007
            pass
        return step.x

    def steps(
        denoise: Denoise,
        x_T: Tensor,
        times: Tensor,
        after: After | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        require_finite(x_T, "x_T")
        walk = generator_function(denoise, x_T, checked_times(times), **options)
        return _drive(walk, x_T, after)

    run.steps = steps
    return run


def walk(
    sampler: Callable[..., Tensor],
    denoise: Denoise,
    x_T: Tensor,
    times: Tensor,
    **options: Any,
) -> Iterator[Step]:
    """Every Step of a sampler, as it is made.

    Args:
        sampler: one of this package, such as `samplers.ddim`.
        denoise: any denoiser.
        x_T: where the walk starts, shape (B, ...).
        times: falling times, shape (steps + 1,).
        **options: what the sampler takes, conditions included.
    """
    require(hasattr(sampler, "steps"), f"{sampler!r} is no sampler; try samplers.ddim")
    return sampler.steps(denoise, x_T, times, **options)
