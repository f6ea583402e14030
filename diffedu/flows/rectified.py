"""Rectified flow: how straight an ODE's paths are, and new pairs from its two ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffedu import samplers
from diffedu.denoiser import DenoiserBase
from diffedu.errors import require, require_same_shape


@dataclass
class Journey:
    """Where an ODE took a batch from t = 1 to t = 0.

    Attributes:
        times: falling, shape (steps + 1,).
        states: shape (steps + 1, B, ...), the start first.
        velocities: at the start of each step, shape (steps, B, ...).
    """

    times: Tensor
    states: Tensor
    velocities: Tensor

    @property
    def x1(self) -> Tensor:
        """The start, shape (B, ...)."""
        return self.states[0]

    @property
    def x0(self) -> Tensor:
        """The end, shape (B, ...)."""
        return self.states[-1]

    @property
    def straightness(self) -> Tensor:
        """See `straightness`: shape (B,), 0 for a straight path at even speed."""
        return straightness(self.velocities, self.times)


def straightness(velocities: Tensor, times: Tensor) -> Tensor:
    """S = integral of |(x1 - x0) - velocity|^2 dt, one value a sample.

    It is the variance of the velocity over time: 0 where a point goes straight at an
    even speed, and then one Euler step is exact.

    Args:
        velocities: dx/dt at the start of each step, shape (steps, B, ...).
        times: falling from 1 to 0, shape (steps + 1,).

    Returns:
        shape (B,), in squared units of the data. (It is low for straight paths.)

    Raises:
        ValueError: for times of another length, or that don't fall.

    Source: (arXiv 2209.03003, section 2), there S(Z) as the mean over a batch.
    """
    count = len(velocities)
    require(len(times) == count + 1, f"{count} velocities need {count + 1} times")
    lengths = -torch.as_tensor(times).diff().to(velocities)
    require(bool((lengths > 0).all()), "times must fall, from 1 to 0")
    flat = velocities.flatten(2)
    shares = lengths[:, None, None]
    moved = (shares * flat).sum(0)  # x1 - x0
    return (shares * (moved - flat).square()).sum((0, 2))


def travel(
    denoise: DenoiserBase, x1: Tensor, steps: int = 100, **condition: Tensor | None
) -> Journey:
    """Walk from t = 1 to 0 by Euler's method in equal steps, and keep the way.

    Args:
        denoise: a denoiser on `schedules.flow()`.
        x1: where to start, shape (B, ...).
        steps: how many.
        **condition: passed to the denoiser.

    Returns:
        a Journey.

    Raises:
        ValueError: on another path, whose velocity is not of a straight line.
    """
    name = denoise.schedule.name
    straight = name == "flow"
    require(straight, f'path "{name}" is curved; use denoise.on(schedules.flow())')
    times = samplers.time_grid(denoise.schedule, steps, start=1.0)
    states, velocities = [x1], []
    for step in samplers.walk(samplers.euler, denoise, x1, times, **condition):
        velocities.append(step.seen.velocity)
        states.append(step.x)
    return Journey(times, torch.stack(states), torch.stack(velocities))


def reflow_pairs(
    denoise: DenoiserBase, x1: Tensor, steps: int = 50, **condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Pairs (x0, x1) for the next training: the two ends of the ODE.

    Args:
        denoise: a trained denoiser on `schedules.flow()`.
        x1: fresh noise, or points of the second data set, shape (N, ...).
        steps: Heun steps; what the solver misses, the next flow learns as truth.
        **condition: passed to the denoiser.

    Returns:
        x0 of x1's shape, and x1.

    Source: (arXiv 2209.03003, section 2).
    """
    times = samplers.time_grid(denoise.schedule, steps, start=1.0)
    with torch.no_grad():
        return samplers.heun(denoise, x1, times, **condition), x1


def transport_cost(x0: Tensor, x1: Tensor) -> Tensor:
    """|x1 - x0|^2 of each pair, shape (B,), for x0 and x1 of shape (B, ...).

    Rectifying a coupling never raises the mean of this, nor of any other convex
    function of x1 - x0 (arXiv 2209.03003, section 3).
    """
    require_same_shape(x0, x1, "x0 and x1")
    return (x1 - x0).flatten(1).square().sum(1)
