"""Several processes that train as one: each its share of the batch, one gradient."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from diffedu.errors import require


def started() -> bool:
    """True once the processes know of each other."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) when it is alone."""
    if started():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join(device: torch.device) -> None:
    """Meet the other processes that `torchrun` started, if it did.

    Args:
        device: where this process computes; NCCL on CUDA, Gloo elsewhere.

    Raises:
        RuntimeError: if torch was built without distributed training.
    """
    if started() or rank_and_world()[1] == 1:
        return
    require(
        distributed.is_available(),
        "this torch was built without torch.distributed; run one process",
        RuntimeError,
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(leave)


def leave() -> None:
    """Part from the other processes, if still joined."""
    if started():
        distributed.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """The value of every process, in order of rank, on each of them."""
    if not started():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


class LossModule(nn.Module):
    """The loss as a module that owns the weights, which is what DDP wants to wrap.

    Args:
        modules: what is trained.
        loss_fn: called as `loss_fn(batch, generator)`.
    """

    def __init__(self, modules: nn.Module, loss_fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.modules_ = modules
        self.loss_fn = loss_fn

    def forward(self, batch: Any, generator: torch.Generator) -> Tensor:
        """The loss of a batch, shape ()."""
        return self.loss_fn(batch, generator)


def joined_loss(
    modules: nn.Module, loss_fn: Callable[..., Tensor], device: torch.device
) -> Callable[..., Tensor]:
    """`loss_fn` itself, or one whose gradients are averaged over all processes.

    Call `join` first.

    Args:
        modules: what is trained; process 0's weights are copied to the others.
        loss_fn: called as `loss_fn(batch, generator)`, the mean over its share.
        device: where this process computes.

    Returns:
        a function with the same call.
    """
    if rank_and_world()[1] == 1:
        return loss_fn
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        LossModule(modules, loss_fn), device_ids=ids
    )
