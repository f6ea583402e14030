"""Training steps of `training.fit` against the loop that one writes by hand.

Both train the same network from the same weights on the same batches, with AdamW,
clipped gradients and an average of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from side_by_side import Prepare, Row, compare
from torch import Tensor, nn

from diffedu import Denoiser, losses, nets, schedules, training


@dataclass(frozen=True)
class Task:
    """A network and the shape (B, ...) of the batches it learns from."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def batches(self, count: int = 8) -> list[Tensor]:
        """Some noise to learn, each of `shape`."""
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(self.shape, generator=generator) for _ in range(count)]


TASKS = (
    Task("Training an MLP, 512 points", nets.MLP, (512, 2)),
    Task("Training a U-Net, 64 digits", nets.UNet, (64, 1, 8, 8)),
)


def by_hand(
    model: nn.Module, loss_fn: Callable, batches: list[Tensor], steps: int
) -> Iterator[None]:
    """The plain loop, for batches of shape (B, ...)."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        loss = loss_fn(batches[step % len(batches)], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            both = zip(average.parameters(), model.parameters(), strict=True)
            for slow, fast in both:
                slow.lerp_(fast, 0.001)
        loss.item()  # a loop that shows its loss reads it
        yield


def by_fit(
    model: nn.Module, loss_fn: Callable, batches: list[Tensor], steps: int
) -> Iterator[training.State]:
    """The library's loop with the same settings, for batches of shape (B, ...)."""
    generator = torch.Generator().manual_seed(0)

    def batch(step: int) -> Tensor:
        return batches[step % len(batches)]

    return training.fit(
        model, loss_fn, batch, steps=steps, progress=False, generator=generator
    )


def prepared(task: Task, loop: Callable, steps: int) -> Prepare:
    """A run whose first step, with all that is set up in it, is not timed."""
    torch.manual_seed(0)
    start, batches = task.make(), task.batches()

    def prepare() -> Callable[[], list]:
        model = Denoiser(copy.deepcopy(start), schedules.cosine(), "v")

        def loss_fn(x0: Tensor, generator: torch.Generator) -> Tensor:
            return losses.denoising(model, x0, generator=generator)

        states = loop(model, loss_fn, batches, steps + 1)
        next(states)
        return lambda: [None for _ in islice(states, steps)]

    return prepare


def trainings(tasks: tuple[Task, ...], steps: int, rounds: int) -> list[Row]:
    """The rows of all tasks, each run taking `steps` steps."""
    found = []
    for task in tasks:
        who = {
            "diffedu": prepared(task, by_fit, steps),
            "by hand": prepared(task, by_hand, steps),
        }
        found += compare(task.name, who, steps, rounds)
    return found
