"""One training loop for every model of the course, as a generator.

`for state in fit(...)` takes a step and shows where the training stands, so that
plots, samples and early ends stay outside of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.training.data import BatchSource, Source
from diffedu.training.options import Options, State
from diffedu.training.run import Run

Modules = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]


def fit(
    modules: Modules,
    loss_fn: Callable[[Any, torch.Generator], Tensor],
    batches: BatchSource,
    *,
    steps: int = 2000,
    lr: float = 1e-3,
    ema: float | None = 0.999,
    warmup: int = 0,
    schedule: str = "cosine",
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    precision: str = "float32",
    capture: bool | str = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    resume: bool = True,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Iterator[State]:
    """Train, one step for each turn of the caller's loop.

    A training that was stopped, by Ctrl-C or by kill -9, goes on from its
    checkpoint when it is called again in the same way; on a CPU it then ends in the
    very weights of one that was never stopped. A finished one shows its last state.
    Under `torchrun` every process takes its share of a batch and gradients are
    averaged; the first one writes. Afterwards the modules are in evaluation mode.

    Args:
        modules: a module, or a list or dict of several, that are trained as one.
        loss_fn: called as `loss_fn(batch, generator)`; a loss of shape (), the mean
            over the batch. It draws its noise from `generator` alone. In a captured
            graph it must depend on nothing in Python that changes from step to step.
        batches: `training.batches(...)`, or a function from step to batch (called
            with step * processes + rank), or any iterable; moved to the device.
        steps: number of steps.
        lr: the highest learning rate.
        ema: decay of the averaged weights, or None for no average.
        warmup: steps over which the rate rises.
        schedule: "cosine" (falls to 0) or "constant".
        clip: largest norm of the gradient, or None.
        weight_decay: AdamW's.
        precision: "float32" (the weights' own), "bf16" (mixed), or "auto": bf16 if
            two seconds of trying find it faster.
        capture: run the step as one CUDA graph: "auto" where possible, True or
            an error, False never.
        checkpoint: file to write to and to go on from, or None.
        checkpoint_every: steps between two of them; the last step writes one too.
        log_every: steps over which `mean_loss` is taken.
        resume: False starts anew even if the checkpoint is there.
        generator: source of the loss's noise; None makes one on the device, seeded
            from torch's global generator. Processes add their rank to its seed.
        progress: show a bar, unless the environment sets TQDM_DISABLE.

    Returns:
        an iterator over the `State` after each step.

    Raises:
        ValueError: if an argument is out of range, a batch is missing, the loss has
            another shape, or the checkpoint is broken or of another training.
        FloatingPointError: if the loss or a weight is no longer finite.
        OSError: if a checkpoint cannot be written; the earlier one is intact.
    """
    options = Options(
        steps=steps, lr=lr, ema=ema, warmup=warmup, schedule=schedule, clip=clip,
        weight_decay=weight_decay, precision=precision, capture=capture,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every,
        log_every=log_every, resume=resume, progress=progress,
    )  # fmt: skip
    source = Source(batches, resumable=checkpoint is not None)
    return Run(as_module(modules), loss_fn, source, options, generator).states()


def as_module(modules: Modules) -> nn.Module:
    """One module out of one, a list or a dict; TypeError for anything else."""
    if isinstance(modules, nn.Module):
        return modules
    if isinstance(modules, Mapping):
        return nn.ModuleDict(modules)
    require(
        isinstance(modules, Sequence) and not isinstance(modules, str),
        f"modules must be a module, a list or a dict, got {type(modules).__name__}",
        TypeError,
    )
    return nn.ModuleList(modules)
