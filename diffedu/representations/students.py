"""Students: small networks taught by hidden states, then by a few labels.

A student has `stages(x)`, a dict of hidden states by name, as `nets.Encoder` has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu import training
from diffedu.errors import lookup, require, require_finite
from diffedu.representations.transfer import Maps, dream_loss

# What answers for the student


class PyramidPooling(nn.Module):
    """Context for a coarse map: means over grids of several sizes beside it.

    Args:
        channels: channels in and out.
        bins: the grids' sizes; each must not exceed the map's.

    Source: PSPNet's module (arXiv 1612.01105).
    """

    def __init__(self, channels: int, bins: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        self.bins = tuple(bins)
        share = max(1, channels // len(self.bins))
        self.mix = nn.ModuleList(nn.Conv2d(channels, share, 1) for _ in self.bins)
        joined = channels + share * len(self.bins)
        self.join = nn.Conv2d(joined, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        means = [F.adaptive_avg_pool2d(h, bins) for bins in self.bins]
        grown = [
            F.interpolate(mix(m).relu(), h.shape[-2:])
            for mix, m in zip(self.mix, means, strict=True)
        ]
        return self.join(torch.cat([h, *grown], dim=1)).relu()


class FeatureRegressor(nn.Module):
    """From a student's hidden states to the teacher's, coarse ones helping fine ones.

    A pyramid of features: each level passes a 1x1 convolution, gets the next coarser
    one added, grown to its grid, and a 3x3 convolution answers for the teacher. The
    coarsest sees its context first. It is thrown away after the transfer.

    Args:
        student: channels of the student's levels, from fine to coarse.
        teacher: channels of the teacher's, in the same order.
        width: channels of the pyramid.

    Raises:
        ValueError: if the two have not the same number of levels, 1 or more.

    Source: (arXiv 2307.07487), after feature pyramids (arXiv 1612.03144).
    """

    def __init__(
        self, student: Sequence[int], teacher: Sequence[int], width: int = 32
    ) -> None:
        super().__init__()
        require(
            len(student) == len(teacher) > 0,
            f"{len(student)} levels of the student for {len(teacher)} of the teacher; "
            "name one for each",
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in student)
        self.context = PyramidPooling(width)
        self.answer = nn.ModuleList(
            nn.Conv2d(width, c, 3, padding=1) for c in teacher
        )  # fmt: skip

    def forward(self, levels: Maps) -> list[Tensor]:
        """Map levels (B, c_l, H_l, W_l), fine to coarse, to (B, C_l, H_l, W_l)."""
        sides = [side(h) for side, h in zip(self.lateral, levels, strict=True)]
        merged = [self.context(sides[-1])]
        for side in reversed(sides[:-1]):
            merged.insert(0, side + F.interpolate(merged[0], side.shape[-2:]))
        return [out(h) for out, h in zip(self.answer, merged, strict=True)]


# Training


def pretrain(
    student: nn.Module,
    images: Tensor,
    teacher: Mapping[str, Tensor],
    pairs: Mapping[str, str],
    *,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 2e-3,
    width: int = 32,
    attention: float = 1.0,
    normalise: bool = True,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Teach a student the teacher's hidden states, in place and without labels.

    Args:
        student: has `stages(x)`; its other parts are left as they are.
        images: what both look at, the student without noise; shape (N, C, H, W).
        teacher: hidden states by block, (N, C_l, H_l, W_l), as `features.extract`
            answers with pool="none".
        pairs: for each student's stage the teacher's block that it answers for, from
            fine to coarse. Other grids are averaged to the stage's.
        steps: number of steps.
        batch_size: images a step.
        lr: the highest learning rate.
        width: channels of the regressor, which is thrown away.
        attention: weight of the attention maps.
        normalise: whiten the teacher's features.
        generator: source of the order of the images, on the CPU. The regressor starts
            from torch's global generator, as every module does.

    Returns:
        the loss of each step.

    Raises:
        ValueError: for an unknown block or stage, rows that do not fit the images,
            or values that are not finite.

    Source: DreamTeacher (arXiv 2307.07487); with one pair, RepFusion's distillation.
    """
    require(len(pairs) > 0, "pairs is empty; name a block for at least one stage")
    with torch.no_grad():
        shown = student.stages(images[:1])
    stages = {name: lookup(shown, name, "stage") for name in pairs}
    aims = [
        _fitted(lookup(teacher, block, "block"), stages[name], len(images), block)
        for name, block in pairs.items()
    ]
    regressor = FeatureRegressor(
        [h.shape[1] for h in stages.values()], [aim.shape[1] for aim in aims], width
    ).to(images.device)

    def loss(batch: tuple[Tensor, ...], _: torch.Generator) -> Tensor:
        seen = student.stages(batch[0])
        predicted = regressor([seen[name] for name in pairs])
        return dream_loss(predicted, batch[1:], attention, normalise)

    student.requires_grad_(True)
    rows = training.batches((images, *aims), batch_size, generator=generator)
    return _run([student, regressor], loss, rows, steps, lr)


def fine_tune(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Train all of a classifier on labelled images, in place.

    Args:
        net: answers logits (B, classes) of images.
        images: shape (N, C, H, W).
        labels: shape (N,), int64.
        steps, batch_size, lr: as of `pretrain`.
        weight_decay: AdamW's.
        generator: source of the order of the images, on the CPU.

    Returns:
        the loss of each step, in nats.

    Raises:
        ValueError: if there is not one label an image.
    """
    require(
        labels.shape == images.shape[:1],
        f"labels have shape {tuple(labels.shape)} for {len(images)} images",
    )
    rows = training.batches((images, labels), batch_size, generator=generator)

    def loss(batch: tuple[Tensor, Tensor], _: torch.Generator) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    return _run(net.requires_grad_(True), loss, rows, steps, lr, weight_decay)


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor, chunk: int = 256) -> float:
    """The share of images (N, C, H, W) whose largest logit is their label's (N,)."""
    parts = [net(x).argmax(1) for x in images.split(chunk)]
    return float((torch.cat(parts) == labels).double().mean())


def _run(
    modules: nn.Module | list[nn.Module],
    loss: Callable[..., Tensor],
    rows: Iterator[Any],
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
) -> list[float]:
    """Train to the end; the loss of each step. The losses draw nothing."""
    states = training.fit(
        modules, loss, rows, steps=steps, lr=lr, ema=None, progress=False,
        weight_decay=weight_decay, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return [state.loss for state in states]


def _fitted(aim: Tensor, stage: Tensor, images: int, block: str) -> Tensor:
    """The teacher's features (N, C, H, W) on the grid of the student's stage."""
    require(
        aim.dim() == 4 and len(aim) == images,
        f"{block} has shape {tuple(aim.shape)}; for {images} images it must be "
        f"({images}, C, H, W): extract with pool='none'",
    )
    require_finite(aim, block)
    same = aim.shape[-2:] == stage.shape[-2:]
    return aim if same else F.adaptive_avg_pool2d(aim, stage.shape[-2:])
