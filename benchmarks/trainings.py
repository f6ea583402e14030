"""Training steps of `training.fit` against the loop that one writes by hand.

Both train the same network from the same weights on the same batches, with AdamW,
clipped gradients and an average of the weights. The U-Net for images of 16 pixels
stands beside diffusers' with as many parameters, too, which `fit` then trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from side_by_side import Prepare, Row, compare
from torch import Tensor, nn

from diffedu import Denoiser, losses, nets, schedules, training


class Theirs(nn.Module):
    """diffusers' U-Net of three levels, called as ours are: t runs from 0 to 1.

    Like ours it has one block a level on the way down, attention with one head on
    the grid of half the size, and (1, 2, 2) times the width.

    Args:
        channels: of the images.
        size: their pixels along a side.
        width: channels of the first level.
    """

    def __init__(self, channels: int = 3, size: int = 16, width: int = 24) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.net = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x (B, channels, size, size) and t (B,) to x's shape."""
        return self.net(x, 1000 * t, return_dict=False)[0]


@dataclass(frozen=True)
class Task:
    """A network and the shape (B, ...) of the batches it learns from.

    Attributes:
        name: of the rows.
        make: our network.
        shape: of a batch.
        theirs: diffusers' network of as many parameters, if it has one.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    theirs: Callable[[], nn.Module] | None = None

    def batches(self, count: int = 8, device: str = "cpu") -> list[Tensor]:
        """Some noise to learn, each of `shape`."""
        generator = torch.Generator().manual_seed(0)
        drawn = (torch.randn(self.shape, generator=generator) for _ in range(count))
        return [batch.to(device) for batch in drawn]


def images(batch: int) -> Task:
    """Training on so many images of 16 pixels, beside diffusers' U-Net."""
    net = partial(nets.UNet, 3, 16, attention=(8,))
    name = f"Training a U-Net, {batch} images of 16 pixels"
    return Task(name, net, (batch, 3, 16, 16), Theirs)


TASKS = (
    Task("Training an MLP, 512 points", nets.MLP, (512, 2)),
    Task("Training a U-Net, 64 digits", nets.UNet, (64, 1, 8, 8)),
    images(8),
)


def parameters(net: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in net.parameters())


def by_hand(
    model: nn.Module, loss_fn: Callable, batches: list[Tensor], steps: int
) -> Iterator[None]:
    """The plain loop, for batches of shape (B, ...)."""
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator(batches[0].device).manual_seed(0)
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
    model: nn.Module,
    loss_fn: Callable,
    batches: list[Tensor],
    steps: int,
    capture: bool | str = "auto",
) -> Iterator[training.State]:
    """The library's loop with the same settings, for batches of shape (B, ...)."""
    generator = torch.Generator(batches[0].device).manual_seed(0)

    def batch(step: int) -> Tensor:
        return batches[step % len(batches)]

    return training.fit(
        model,
        loss_fn,
        batch,
        steps=steps,
        capture=capture,
        progress=False,
        generator=generator,
    )


def prepared(
    task: Task,
    loop: Callable,
    steps: int,
    make: Callable[[], nn.Module] | None = None,
    device: str = "cpu",
    first: int = 1,
) -> Prepare:
    """A run of the task whose first steps, and what is set up in them, don't count.

    Args:
        task: what is trained, on which batches.
        loop: `by_hand` or `by_fit`.
        steps: how many are timed.
        make: another network than the task's.
        device: where all of it lies.
        first: steps before the timed ones; a captured graph needs several.
    """
    torch.manual_seed(0)
    start = (make or task.make)().to(device)
    batches = task.batches(device=device)

    def prepare() -> Callable[[], list]:
        model = Denoiser(copy.deepcopy(start), schedules.cosine(), "v")

        def loss_fn(x0: Tensor, generator: torch.Generator) -> Tensor:
            return losses.denoising(model, x0, generator=generator)

        states = loop(model, loss_fn, batches, steps + first)
        for _ in islice(states, first):
            pass
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
        if task.theirs is not None:
            who["diffusers' U-Net"] = prepared(task, by_fit, steps, task.theirs)
        found += compare(task.name, who, steps, rounds)
    return found
