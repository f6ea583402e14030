"""Checkpoints of a training: all that decides its next step, in one file."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import torch

from diffedu.errors import require
from diffedu.training.files import (
    load_weights,
    pack,
    read_tensors,
    unpack,
    write_tensors,
)
from diffedu.training.parallel import gather

if TYPE_CHECKING:
    from diffedu.training.options import Options
    from diffedu.training.run import Run

KIND = "checkpoint of diffedu.training.fit, version 1"


def save(run: Run) -> None:
    """Write all that decides the next step; process 0 writes for all.

    Args:
        run: the training.

    Raises:
        FloatingPointError: if a weight is not finite; the earlier file is kept.
        OSError: if the file cannot be written; the earlier one is intact.
    """
    for name, parameter in run.modules.named_parameters():
        require(
            bool(torch.isfinite(parameter).all()),
            f"weight {name} is no longer finite at step {run.step}; "
            f"{run.options.checkpoint} keeps the last checkpoint, if there was one. "
            "Try a lower lr, a warmup, or clip=1.0",
            FloatingPointError,
        )
    own = {"random": random_states(run.generator), "batches": run.source.state_dict()}
    shares = gather(own)
    if run.rank == 0:
        write(run.options.checkpoint, content_of(run, shares))
    gather(None)  # nobody goes on, or looks for the file, before it is there


def content_of(run: Run, shares: list[dict[str, Any]]) -> dict[str, Any]:
    """What stands in a checkpoint; `shares` is each process's own part."""
    return {
        "step": run.step,
        "seconds": run.seconds,
        "loss": run.loss,
        "precision": run.precision,
        "modules": run.modules.state_dict(),
        "optimizer": optimizer_state(run.optimizer),
        "ema": run.average.module.state_dict() if run.average else None,
        "ema_updates": run.average.updates if run.average else 0,
        "shares": shares,
    }


def find(options: Options) -> dict[str, Any] | None:
    """The checkpoint's content, or None where there is none to go on from.

    Args:
        options: those of the training; `checkpoint` and `resume` count.

    Raises:
        ValueError: if the file is broken or something else, or if processes that
            train as one see different files.
    """
    path = options.checkpoint
    wanted = options.resume and path is not None and os.path.lexists(path)
    saved = read(path) if wanted else None
    seen = gather(saved["step"] if saved else 0)
    require(
        len(set(seen)) == 1,
        f"the processes see {path} at steps {seen}; put it into a folder that all of "
        "them can reach",
    )
    return saved


def restore_place(run: Run, saved: dict[str, Any]) -> None:
    """Set weights, random states and the place in the batches.

    Args:
        run: the training, its options those of the stopped one.
        saved: what `find` answered.

    Raises:
        ValueError: if the checkpoint is of other modules, or has more steps.
    """
    path, steps = run.options.checkpoint, run.options.steps
    require(
        saved["step"] <= steps,
        f"{path} is at step {saved['step']} already, but steps={steps}; ask for more "
        "steps, or start anew with resume=False",
    )
    load_weights(run.modules, saved["modules"], f"checkpoint {path}")
    run.step, run.seconds, run.loss = saved["step"], saved["seconds"], saved["loss"]
    shares = saved["shares"]
    if len(shares) != run.world:
        warnings.warn(
            f"{path} was written by {len(shares)} process(es), now there are "
            f"{run.world}: training goes on, with other noise",
            stacklevel=2,
        )
    share = shares[min(run.rank, len(shares) - 1)]
    run.source.restore(share["batches"], run.step)
    if len(shares) == run.world:
        restore_random(share["random"], run.generator)


def restore_moments(run: Run, saved: dict[str, Any]) -> None:
    """Set the optimiser's moments and the averaged weights.

    Args:
        run: the training, `restore_place` done.
        saved: what `find` answered.

    Raises:
        ValueError: if other parameters were trained.
    """
    restore_optimizer(saved["optimizer"], run.optimizer)
    if run.average and saved["ema"] is not None:
        load_weights(run.average.module, saved["ema"], "the checkpoint's average")
        run.average.updates = saved["ema_updates"]


def write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write nested dicts and lists of tensors and plain values, atomically.

    Raises:
        OSError: if the file cannot be written; the earlier one is then intact.
        TypeError: if the content holds anything else.
    """
    tensors: dict[str, torch.Tensor] = {}
    about = pack(content, tensors, "content")
    write_tensors(path, tensors, {"kind": KIND, "content": about})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken, or something else than a checkpoint.
    """
    tensors, about = read_tensors(path)
    require(
        about.get("kind") == KIND,
        f"{path} is no checkpoint of a training (it says {about.get('kind')!r}); name "
        "another file for checkpoint=, or resume=False to write over it",
    )
    return unpack(about["content"], tensors)


def random_states(generator: torch.Generator) -> dict[str, Any]:
    """The states of the generator and of torch's global ones (dropout's)."""
    cuda = generator.device.type == "cuda" or torch.cuda.is_initialized()
    return {
        "device": generator.device.type,
        "generator": generator.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if cuda else None,
    }


def restore_random(states: dict[str, Any], generator: torch.Generator) -> None:
    """Set the generator and torch's global ones; warn where the device is another."""
    torch.set_rng_state(states["cpu"])
    if states["device"] != generator.device.type:
        warnings.warn(
            f"the checkpoint's noise was drawn on {states['device']}, now it is on "
            f"{generator.device.type}: training goes on, with other noise",
            stacklevel=2,
        )
        return
    generator.set_state(states["generator"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The moments a parameter; rates and decays are the caller's."""
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    return {"parameters": count, "state": optimizer.state_dict()["state"]}


def restore_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Set the moments.

    Raises:
        ValueError: if another number of parameters was trained.
    """
    now = optimizer_state(optimizer)["parameters"]
    require(
        saved["parameters"] == now,
        f"the checkpoint trained {saved['parameters']} parameters, now it is {now}; "
        "freeze the same ones, or start anew with resume=False",
    )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
