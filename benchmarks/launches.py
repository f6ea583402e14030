"""Training on a GPU: steps a second, and how much of a step waits for launches.

A small network's kernels are over before Python has launched the next one. What the
device is not busy for is that waiting, and a captured graph takes most of it away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from side_by_side import Prepare, Row, compare
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from trainings import Task, by_fit, by_hand, images, prepared

GPU_TASK = images(128)
FIRST = 6  # steps on the side, the recording, and a first replay
MOST_ROUNDS = 11  # each begins with a recording, which takes longer than the steps


@dataclass(frozen=True)
class Launches:
    """The share of a step's time in which the GPU has nothing to do.

    Attributes:
        task: what is trained.
        loop: by which loop.
        share: 1 - busy / wall, in [0, 1].
    """

    task: str
    loop: str
    share: float


def wall_seconds(prepare: Prepare) -> float:
    """The wall time of what `prepare` answers, until the GPU is done with it."""
    run = prepare()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length that (start, end) spans cover together, overlaps counted once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def busy_seconds(run: Callable[[], object]) -> float:
    """How long the GPU works in a run: its kernels and copies, from a profile."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        # a named region spans its gaps, so it is not work
        if event.device_type == DeviceType.CUDA
        and not getattr(event, "is_user_annotation", False)
    ]
    return 1e-6 * covered(spans)


def launch_share(prepare: Prepare, runs: int = 3) -> float:
    """1 - busy / wall; the wall time is that of runs without a profiler."""
    wall = sorted(wall_seconds(prepare) for _ in range(runs))[runs // 2]
    return min(1.0, max(0.0, 1 - busy_seconds(prepare()) / wall))


def loops(task: Task, steps: int, device: str = "cuda") -> dict[str, Prepare]:
    """Who trains on the GPU, our captured loop first."""
    run = partial(prepared, task, steps=steps, device=device, first=FIRST)
    who = {
        "captured": run(by_fit),
        "not captured": run(partial(by_fit, capture=False)),
        "by hand": run(by_hand),
    }
    if task.theirs is not None:
        who["diffusers' U-Net"] = run(by_fit, make=task.theirs)
        slow = partial(by_fit, capture=False)
        who["diffusers' U-Net, not captured"] = run(slow, make=task.theirs)
    return who


def on_gpu(
    steps: int, rounds: int, task: Task = GPU_TASK
) -> tuple[list[Row], list[Launches]]:
    """The rows of a GPU, and each loop's share of launches; none where there is none.

    Args:
        steps: timed in one run.
        rounds: how often each loop runs, MOST_ROUNDS at most.
        task: what is trained.
    """
    if not torch.cuda.is_available():
        return [], []
    who = loops(task, steps)
    rounds = min(rounds, MOST_ROUNDS)
    rows = compare(task.name, who, steps, rounds, clock=wall_seconds)
    shares = [Launches(task.name, loop, launch_share(run)) for loop, run in who.items()]
    return rows, shares
