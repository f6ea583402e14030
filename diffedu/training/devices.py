"""Where a training runs, in which precision, and whether as one captured graph."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffedu.errors import require

EAGER_STEPS = 3  # taken on a side stream before a graph is captured


def best_device() -> torch.device:
    """CUDA if there is one, else Apple's GPU, else the CPU.

    Under `torchrun` each process is given the GPU of its own local rank.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_of(parameters: list[nn.Parameter]) -> torch.device:
    """The one device of all parameters; ValueError if they have several."""
    devices = {p.device for p in parameters}
    require(
        len(devices) == 1,
        f"the modules lie on {sorted(map(str, devices))}; move them to one device",
    )
    return devices.pop()


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """The batch with each tensor in its dicts, lists and tuples replaced."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {name: map_tensors(function, part) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, part) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(function, part) for part in batch)
    return batch


def leaves(batch: Any) -> list[Any]:
    """Everything in a batch that is no dict, list or tuple, in order."""
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return [leaf for part in batch for leaf in leaves(part)]
    return [batch]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for "bf16"; the weights' own precision for "float32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def unchanged(modules: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Whatever happens inside, leave buffers and random states as they were."""
    buffers = [(b, b.clone()) for b in modules.buffers()]
    state = generator.get_state()
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            generator.set_state(state)
            for buffer, before in buffers:
                buffer.copy_(before)


def median_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The median time of a call, from about one second of calls."""
    work()
    wait(device)
    times: list[float] = []
    while not times or sum(times) < 1:
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def faster_precision(
    loss: Callable[[], Tensor], parameters: list[nn.Parameter], device: torch.device
) -> str:
    """Try both precisions for about a second each.

    Args:
        loss: gives a loss of shape () to differentiate.
        parameters: what it is differentiated by.
        device: where it runs.

    Returns:
        "bf16" where that is at least a tenth faster, else "float32".
    """
    if parameters[0].dtype != torch.float32:
        return "float32"

    def work(precision: str) -> None:
        with autocast(device, precision):
            value = loss()
        torch.autograd.grad(value, parameters, allow_unused=True)

    try:
        half = median_seconds(lambda: work("bf16"), device)
    except RuntimeError:  # an operation without bfloat16 on this device
        return "float32"
    full = median_seconds(lambda: work("float32"), device)
    return "bf16" if half < 0.9 * full else "float32"


def why_not_captured(
    device: torch.device, generator: torch.Generator, world: int, batch: Any
) -> str | None:
    """Why a step cannot be one CUDA graph; None if it can be tried.

    Args:
        device: where the training runs.
        generator: what its noise is drawn from.
        world: number of processes that train as one.
        batch: the first batch.

    Returns:
        the reason in words, or None.
    """
    if device.type != "cuda":
        return f"a CUDA graph needs a CUDA device, and this is {device.type}"
    if world > 1:
        return "several processes train as one"
    if generator.device.type != "cuda":
        return "the generator is not on the GPU; make it there, or leave it out"
    if not all(isinstance(leaf, Tensor) for leaf in leaves(batch)):
        return "the batch holds more than tensors, and a graph would freeze the rest"
    if not hasattr(torch.cuda.CUDAGraph, "register_generator_state"):
        return "this torch cannot register a generator with a graph; 2.4 or newer can"
    return None


class Captured:
    """A training step that is recorded once and replayed as one CUDA graph.

    The first steps run as written, on a side stream, as capturing asks for. If
    the recording fails, a warning says why and every step runs as written.

    Args:
        update: one step, from a batch on the GPU to the loss; a pure function of
            the batch, the generator and tensors that stay where they are.
        generator: the one that `update` draws from.
    """

    def __init__(self, update: Callable[[Any], Tensor], generator: torch.Generator):
        self.update, self.generator = update, generator
        self.eager_left = EAGER_STEPS
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failure: str | None = None

    def __call__(self, batch: Any) -> Tensor:
        """Take one step; returns its loss, shape ()."""
        if self.eager_left:
            self.eager_left -= 1
            return self.beside(batch)
        if self.graph is None and self.failure is None:
            self.record(batch)
        if self.graph is None or not self.fits(batch):
            return self.update(batch)
        for static, new in zip(leaves(self.batch), leaves(batch), strict=True):
            static.copy_(new)
        self.graph.replay()
        return self.loss.clone()

    def beside(self, batch: Any) -> Tensor:
        """One step as written, on a side stream."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self.update(batch)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def record(self, batch: Any) -> None:
        """Capture the step on a batch of its own; it is not run by this."""
        self.batch = map_tensors(Tensor.clone, batch)
        state, graph = self.generator.get_state(), torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        try:
            with torch.cuda.graph(graph):
                self.loss = self.update(self.batch)
            self.graph = graph
        except RuntimeError as error:
            self.failure = str(error).splitlines()[0]
            warnings.warn(f"not captured as a CUDA graph: {self.failure}", stacklevel=2)
            self.recover(state)

    def recover(self, state: Tensor) -> None:
        """Free the generators from a capture that failed, by one that succeeds."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            torch.zeros(1, device=self.generator.device)
        self.generator.set_state(state)

    def fits(self, batch: Any) -> bool:
        """True if the batch has the recorded one's shapes and dtypes."""
        old, new = leaves(self.batch), leaves(batch)
        return len(old) == len(new) and all(
            isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
            for a, b in zip(old, new, strict=True)
        )
