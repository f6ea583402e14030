"""What heads share: rows checked, weights drawn, training with an early choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diffedu.errors import require, require_finite, require_same_device
from diffedu.metrics.probe import split_rows
from diffedu.training import batches, fit


@dataclass(frozen=True)
class Fitted:
    """A fitted head.

    `score`: what maps features to class scores. `classes`: the labels (C,).
    `validation_accuracy`: of what was chosen, on rows it was not fitted to.
    `chosen`: the strength or the step chosen.
    """

    score: Callable[[Any], Tensor]
    classes: Tensor
    validation_accuracy: float
    chosen: float

    @torch.no_grad()
    def logits(self, x: Any) -> Tensor:
        """Class scores (N, C) of features, given as they were to `fit`."""
        return self.score(x)

    def predict(self, x: Any) -> Tensor:
        """The class label (N,) of each row of features."""
        return self.classes[self.logits(x).argmax(1)]


def check_labels(y: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The classes (C,) and their numbers, in y's shape.

    Args:
        y: integer labels.
        shape: the shape they must have.

    Raises:
        TypeError: if they are no integers.
        ValueError: if the shape is another, or there is one class only.
    """
    require(
        isinstance(y, Tensor) and not y.is_floating_point() and not y.is_complex(),
        f"y must be a tensor of integers; got "
        f"{y.dtype if isinstance(y, Tensor) else type(y).__name__}",
        TypeError,
    )
    require(
        tuple(y.shape) == tuple(shape),
        f"y has shape {tuple(y.shape)}; for these features it is {tuple(shape)}",
    )
    classes, numbers = y.long().unique(return_inverse=True)
    require(len(classes) >= 2, "y holds one class; a head needs two or more")
    return classes, numbers


def check_features(x: Tensor, y: Tensor, dims: Sequence[int], form: str) -> None:
    """Raise unless x is finite, floating, of an accepted number of axes, beside y."""
    require(
        isinstance(x, Tensor) and x.is_floating_point(),
        f"features must be a floating-point tensor {form}; got "
        f"{x.dtype if isinstance(x, Tensor) else type(x).__name__}",
        TypeError,
    )
    require(
        x.dim() in dims and x.numel() > 0,
        f"features have shape {tuple(x.shape)}; this head takes {form}",
    )
    require_finite(x, "features")
    if isinstance(y, Tensor):
        require_same_device(x, y, "x and y")


def draw_weights(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of linear layers anew, from this generator; biases are 0."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            drawn = torch.empty(module.weight.shape)
            nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=generator)
            module.weight.data.copy_(drawn)
            nn.init.zeros_(module.bias)


def own(generator: torch.Generator | None) -> torch.Generator:
    """A generator on the CPU, seeded from this one, or from torch's global one."""
    device = "cpu" if generator is None else generator.device
    seed = torch.randint(2**62, (), generator=generator, device=device)
    return torch.Generator().manual_seed(int(seed))


def train(
    net: nn.Module,
    x: Sequence[Tensor],
    y: Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    weight_decay: float,
    validation: float,
    generator: torch.Generator,
) -> tuple[float, int]:
    """Train by AdamW and leave the net as it was at its best on held-out rows.

    Args:
        net: called as `net(x)`, x being such a list, to logits (B, C).
        x: tensors, each (N, ...).
        y: numbers of classes, (N,).
        steps: how many. The held-out rows are looked at 20 times.
        batch: rows a step; every row comes once an epoch.
        lr: the highest learning rate; it falls to 0 along a cosine.
        weight_decay: AdamW's.
        validation: share of the rows held out, of every class.
        generator: draws the split and the batches.

    Returns:
        the best accuracy on the held-out rows, and its step.
    """
    rows, held = split_rows(y, validation, generator)
    order = batches(rows, min(batch, len(rows)), generator)

    def loss_fn(chosen: Tensor, _: torch.Generator) -> Tensor:
        return cross_entropy(net([part[chosen] for part in x]), y[chosen])

    best, kept, every = (-1.0, 0.0, 0), {}, max(1, steps // 20)
    for state in fit(
        net, loss_fn, order, steps=steps, lr=lr, weight_decay=weight_decay, ema=None,
        capture=False, progress=False, generator=torch.Generator(y.device),
    ):  # fmt: skip
        if state.step % every == 0 or state.step == steps:
            mark = (*_mark(net, [part[held] for part in x], y[held]), -state.step)
            if mark > best:
                best = mark
                kept = {k: v.detach().clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)
    return best[0], -best[2]


@torch.no_grad()
def _mark(net: nn.Module, x: Sequence[Tensor], y: Tensor) -> tuple[float, float]:
    """Accuracy, and of equals the lower loss: the greater, the better."""
    net.eval()
    parts = [net([p[rows] for p in x]) for rows in torch.arange(len(y)).split(1024)]
    logits = torch.cat(parts)
    right = int((logits.argmax(1) == y).sum()) / len(y)
    return right, -float(cross_entropy(logits, y))
