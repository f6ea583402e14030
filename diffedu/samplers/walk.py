"""What all samplers share: a walk down a list of times, one `Step` at a time.

A sampler is written as a generator that yields each Step and receives the state to
go on from. Called, it returns the end; under `walk`, it shows the whole way.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require, require_finite
from diffedu.prediction import Prediction
from diffedu.schedules import Schedule
from diffedu.tensors import normal_like


@dataclass
class Step:
    """One step of a walk from time t to time s.

    Attributes:
        index: the number of the step, from 0.
        t: the time it left, shape ().
        s: the time it reached, shape ().
        x_t: the state it left, shape (B, ...).
        x: the state it reached, at s, shape (B, ...).
        seen: what the denoiser saw at t.
    """

    index: int
    t: Tensor
    s: Tensor
    x_t: Tensor
    x: Tensor
    seen: Prediction

    @property
    def x0(self) -> Tensor:
        """The clean data as the denoiser saw it at t, shape (B, ...)."""
        return self.seen.x0


After = Callable[[Tensor, Step], Tensor]
Walk = Generator[Step, Tensor, None]


class Look:
    """A denoiser with its condition filled in: `look(x, t)` answers a Prediction.

    `look.noise()` is the walk's noise, `look.noise(n)` that of n draws a step.

    Args:
        denoise: any denoiser.
        condition: what it is told beside x and t.
        noise: makes the source of noise.
    """

    def __init__(
        self,
        denoise: DenoiserBase,
        condition: dict[str, Any],
        noise: Callable[..., Noise],
    ) -> None:
        self.denoise, self.condition, self.noise = denoise, condition, noise
        self.schedule = denoise.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        """Look at x of shape (B, ...) at t of shape ()."""
        return self.denoise(x, t, **self.condition)


class Noise:
    """Fresh or recorded standard noise: `noise(x, index)` has the shape of x.

    Args:
        recorded: noise to use, shape (steps, *inner, *x.shape), or None.
        generator: source of fresh noise.
        times: the times of the walk, shape (steps + 1,).
        x: where the walk starts, shape (B, ...).
        *inner: how many draws each step takes, where that is more than one.

    Raises:
        ValueError: if the recorded noise has another shape.
    """

    def __init__(
        self,
        recorded: Tensor | None,
        generator: torch.Generator | None,
        times: Tensor,
        x: Tensor,
        *inner: int,
    ) -> None:
        shape = (len(times) - 1, *inner, *x.shape)
        if recorded is not None and tuple(recorded.shape) != shape:
            raise ValueError(
                f"recorded noise must have shape (steps, *x.shape) = {shape} here, "
                f"got {tuple(recorded.shape)}"
            )
        self.recorded, self.generator = recorded, generator

    def __call__(self, x: Tensor, *index: int) -> Tensor:
        """The noise of a step (and of a draw within it) for x of shape (B, ...)."""
        if self.recorded is None:
            return normal_like(x, self.generator)
        return self.recorded[index].to(x)


def checked_times(times: Tensor) -> Tensor:
    """Times of shape (N + 1,) as float64 on the CPU; ValueError unless they fall."""
    times = torch.as_tensor(times).detach().to("cpu").double()
    ok = times.dim() == 1 and len(times) >= 2
    require(ok, f"times must have shape (steps + 1,), got {tuple(times.shape)}")
    require(
        bool((times.diff() < 0).all()) and times[0] <= 1 and times[-1] >= 0,
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


def _drive(
    steps: Walk, x: Tensor, after: After | None, ready: AbstractContextManager
) -> Iterator[Step]:
    """Run a sampler's generator; gradients flow only if the start asks for them."""
    wants_grad, reply = torch.is_grad_enabled() and x.requires_grad, None
    with ready:
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


# what every sampler takes beside its own options; anything else is a condition
SHARED = """
    Args:
        denoise: any denoiser.
        x_T: where the walk starts, shape (B, ...), at times[0].
        times: falling times, shape (steps + 1,); a last 0 is clean data.
        after: called as `after(x, step)` once a step; its answer replaces x.
        noise: recorded noise, shape (steps, *x_T.shape), with one more axis where a
            step takes several; a deterministic walk leaves it alone.
        generator: source of fresh noise.
        **condition: passed to the denoiser, such as `label=y`.

    Returns:
        the end of the walk, shape (B, ...); gradients only if x_T requires them.

    Raises:
        ValueError: for times that do not fall, NaN in x_T, or noise of another shape.
"""


def sampler(steps_of_one: Callable[..., Walk]) -> Callable[..., Tensor]:
    """Make a sampler of a generator of Steps: called, it returns the end of the walk.

    Args:
        steps_of_one: called as `steps_of_one(look, x, times, **own options)`, for x of
            shape (B, ...) and times of shape (steps + 1,).
    """
    own = list(inspect.signature(steps_of_one).parameters.values())[3:]

    def steps(
        denoise: DenoiserBase,
        x_T: Tensor,
        times: Tensor,
        *,
        after: After | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        require_finite(x_T, "x_T")
        times = checked_times(times)
        chosen = {p.name: options.pop(p.name) for p in own if p.name in options}
        source = functools.partial(Noise, noise, generator, times, x_T)
        look = Look(denoise, options, source)
        ready = look.schedule.remembering(times)
        return _drive(steps_of_one(look, x_T, times, **chosen), x_T, after, ready)

    @functools.wraps(steps_of_one)
    def run(
        denoise: DenoiserBase, x_T: Tensor, times: Tensor, **options: Any
    ) -> Tensor:
        for step in steps(denoise, x_T, times, **options):
            end = step.x
        return end

    run.steps, run.__signature__ = steps, _public_signature(steps, own)
    run.__doc__ = inspect.cleandoc(run.__doc__) + "\n\n" + inspect.cleandoc(SHARED)
    return run


def _public_signature(
    steps: Callable[..., Any], own: list[inspect.Parameter]
) -> inspect.Signature:
    """What `help` shows: the shared arguments, the sampler's own, the condition."""
    *shared, rest = inspect.signature(steps).parameters.values()
    return inspect.Signature([*shared, *own, rest.replace(name="condition")])


def walk(
    sampler: Callable[..., Tensor],
    denoise: DenoiserBase,
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
