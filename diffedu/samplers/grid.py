"""The list of times that a sampler walks down. Nothing else decides where it steps."""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.errors import lookup, require
from diffedu.schedules import Schedule

SIGMA_MIN = 0.002  # the last noise level before 0 in arXiv 2206.00364


def _even(start: float, end: float, count: int) -> Tensor:
    return torch.linspace(start, end, count, dtype=torch.float64)


def _snap(schedule: Schedule, times: Tensor) -> Tensor:
    """The nearest points of the table, where the path runs through one."""
    if schedule.steps is None:
        return times
    return (times * schedule.steps).round() / schedule.steps


def _noise_level(schedule: Schedule, t: float) -> float:
    """sigma / alpha at t; on the way to 0, SIGMA_MIN or the least the path has."""
    level = torch.exp(-0.5 * schedule.log_snr(t if t > 0 else schedule.t_min)).item()
    return level if t > 0 else max(level, SIGMA_MIN)


def _uniform(
    schedule: Schedule, steps: int, start: float, end: float, rho: float
) -> Tensor:
    """Equal steps in t, "trailing" in (arXiv 2305.08891, table 2)."""
    return _snap(schedule, _even(start, end, steps + 1))


def _leading(
    schedule: Schedule, steps: int, start: float, end: float, rho: float
) -> Tensor:
    """The same steps, but begun one short of start, at the cost of signal.

    The last noisy time is the table's first, or t_min (arXiv 2305.08891, table 2).
    """
    first = 1 / schedule.steps if schedule.steps else schedule.t_min
    length = (start - end) / steps
    if schedule.steps:
        length = max(int(length * schedule.steps), 1) / schedule.steps
    noisy = max(first, end) + length * torch.arange(steps - 1, -1, -1).double()
    return torch.cat([noisy, torch.full((1,), end, dtype=torch.float64)])


def _spaced_noise(
    schedule: Schedule, steps: int, start: float, end: float, exponent: float
) -> Tensor:
    """Steps of equal size in (sigma / alpha)^exponent, or in its log for exponent 0."""
    if exponent == 0:
        low = end if end > 0 else schedule.t_min
        ends = schedule.log_snr(start).item(), schedule.log_snr(low).item()
    else:
        ends = _noise_level(schedule, start), _noise_level(schedule, end)
        ends = ends[0] ** exponent, ends[1] ** exponent
    levels = _even(*ends, steps + 1 if end > 0 else steps)
    log_snr = levels if exponent == 0 else -2 / exponent * levels.log()
    times = schedule.time_of_log_snr(log_snr)
    # both ends as they were asked for, not as two inversions give them back
    times[0] = start
    return torch.cat([times[:steps], torch.full((1,), end, dtype=torch.float64)])


def _log_snr(
    schedule: Schedule, steps: int, start: float, end: float, rho: float
) -> Tensor:
    """Equal steps in log-SNR; to 0 by way of t_min (arXiv 2206.00927)."""
    return _spaced_noise(schedule, steps, start, end, 0.0)


def _karras(
    schedule: Schedule, steps: int, start: float, end: float, rho: float
) -> Tensor:
    """Equal steps in (sigma / alpha)^(1/rho) (arXiv 2206.00364, eq. 5)."""
    return _spaced_noise(schedule, steps, start, end, 1 / rho)


SPACINGS = {
    "uniform": _uniform,
    "trailing": _uniform,
    "leading": _leading,
    "log_snr": _log_snr,
    "karras": _karras,
}


def time_grid(
    schedule: Schedule,
    steps: int = 20,
    spacing: str = "uniform",
    start: float | None = None,
    end: float = 0.0,
    rho: float = 7.0,
) -> Tensor:
    """The falling times of a walk of `steps` steps, shape (steps + 1,), float64, CPU.

    Args:
        schedule: the path to walk on.
        steps: how many steps, the one to `end` included.
        spacing: uniform (= trailing), leading, log_snr or karras.
        start: the first time; schedule.t_max unless given.
        end: the last time; 0 is clean data, reached by a step that adds no noise.
        rho: how much karras prefers small noise.

    Raises:
        ValueError: for fewer than 1 step, an unknown spacing, or end >= start.

    On a table, uniform and leading times are rounded to the table's points.
    """
    make = lookup(SPACINGS, spacing, "spacing")
    start = schedule.t_max if start is None else float(start)
    require(steps >= 1, f"a walk needs at least 1 step, got {steps}")
    require(0 <= end < start <= 1, f"need 0 <= end < start <= 1, got {end} and {start}")
    require(rho > 0, f"rho must be above 0, got {rho}")
    times = make(schedule, steps, start, float(end), rho)
    require(
        bool((times.diff() < 0).all()),
        f"{steps} steps are too many: two times coincide on a path of "
        f"{schedule.steps or 'float64'} points",
    )
    return times
