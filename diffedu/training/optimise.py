"""The optimiser, its rate over the steps, and the average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def constant(progress: float) -> float:
    """The full rate all along, for progress in [0, 1)."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 down to 0, for progress in [0, 1) (1608.03983, eq. 5)."""
    return (1 + math.cos(math.pi * progress)) / 2


RATES: dict[str, Callable[[float], float]] = {"cosine": cosine, "constant": constant}


def rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied by at a step.

    Args:
        step: steps already done, 0 to steps - 1.
        steps: steps in all.
        warmup: steps over which the rate rises in a straight line.
        schedule: a name in RATES, followed once the rate has risen.

    Returns:
        a number in (0, 1].
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return RATES[schedule]((step - warmup) / max(steps - warmup, 1))


def adamw(
    parameters: list[nn.Parameter], lr: float, weight_decay: float, captured: bool
) -> torch.optim.AdamW:
    """AdamW (1711.05101), in one fused kernel where the device has it.

    Args:
        parameters: what is trained.
        lr: learning rate; in a captured graph it becomes a tensor, to be changed.
        weight_decay: share of a weight taken off a step, in units of the rate.
        captured: whether its steps go into a CUDA graph.

    Returns:
        the optimiser.
    """
    rate = torch.tensor(lr, device=parameters[0].device) if captured else lr
    options = dict(lr=rate, weight_decay=weight_decay, capturable=captured)
    try:
        return torch.optim.AdamW(parameters, fused=True, **options)
    except RuntimeError:  # no fused kernel for this device or dtype
        return torch.optim.AdamW(parameters, **options)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate, in place where a graph reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


class EMA:
    """An exponential moving average of a module's weights, itself a module.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that the random
    start is soon forgotten; it never exceeds `decay`. The average of a constant is
    that constant, bit for bit.

    Args:
        module: the one that is trained.
        decay: how much of the average stays a step, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.live, self.own = list(module.parameters()), list(self.module.parameters())
        self.tables = list(self.module.buffers()), list(module.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights as they are now; buffers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.own, self.live, 1 - decay)
        if self.tables[0]:
            torch._foreach_copy_(*self.tables)
        self.updates += 1
