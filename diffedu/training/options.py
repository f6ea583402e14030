"""What can be chosen about a training, and what it shows after each step."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from torch import Tensor, nn

from diffedu.errors import lookup, require
from diffedu.training.optimise import RATES

PRECISIONS = {name: name for name in ("float32", "bf16", "auto")}


@dataclass(frozen=True)
class Options:
    """The settings of `fit`, checked; see there for what each of them means.

    Raises:
        ValueError: if one of them is out of range, or a name is unknown.
    """

    steps: int
    lr: float
    ema: float | None
    warmup: int
    schedule: str
    clip: float | None
    weight_decay: float
    precision: str
    capture: bool | str
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    log_every: int
    resume: bool
    progress: bool

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(
                whole and value >= least,
                f"{name} must be a whole number >= {least}, got {value!r}",
            )
        require_real("lr", self.lr, above=0)
        require_real("weight_decay", self.weight_decay)
        if self.clip is not None:
            require_real("clip", self.clip, above=0)
        if self.ema is not None:
            require_real("ema", self.ema)
            require(self.ema < 1, f"ema must be in [0, 1) or None, got {self.ema}")
        require(
            self.warmup < self.steps,
            f"warmup={self.warmup} leaves nothing of steps={self.steps}",
        )
        lookup(RATES, self.schedule, "schedule")
        lookup(PRECISIONS, self.precision, "precision")
        require(
            self.capture in ("auto", True, False),
            f'capture must be "auto", True or False, got {self.capture!r}',
        )


LEAST = {"steps": 1, "warmup": 0, "checkpoint_every": 1, "log_every": 1}


def require_real(name: str, value: float, above: float | None = None) -> None:
    """Raise ValueError unless a number is finite and >= 0, or > `above` if given."""
    real = isinstance(value, (int, float)) and math.isfinite(value)
    fits = real and (value >= 0 if above is None else value > above)
    bound = ">= 0" if above is None else f"> {above}"
    require(fits, f"{name} must be a finite number {bound}, got {value!r}")


@dataclass(frozen=True)
class State:
    """Where a training stands after a step.

    Attributes:
        step: steps done, 1 to `steps`.
        steps: steps in all.
        modules: what is trained, as it was given (a list or dict as a module).
        ema: a copy with averaged weights, in evaluation mode, ready to be used;
            the modules themselves if no average was asked for. It goes on changing
            with the training: deep-copy it to keep it.
        lr: the learning rate of this step.
        seconds: time spent training so far, without the reader's own.
        precision: "float32" or "bf16".
        capture: "captured", or why not.
        mean_loss: at logged steps the mean loss since the last one, else None.
        loss_tensor: the loss of this step, shape (), on its device.
    """

    step: int
    steps: int
    modules: nn.Module
    ema: nn.Module
    lr: float
    seconds: float
    precision: str
    capture: str
    mean_loss: float | None
    loss_tensor: Tensor

    @property
    def loss(self) -> float:
        """The loss of this step; reading it waits for the device."""
        return float(self.loss_tensor)

    @property
    def logged(self) -> bool:
        """True every `log_every` steps and at the last one."""
        return self.mean_loss is not None

    @property
    def last(self) -> bool:
        """True after the last step."""
        return self.step == self.steps
