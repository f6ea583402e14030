"""What a sample costs: calls of the network, counted operations, seconds, energy.

Operations are counted from shapes while the network runs, never timed, so that they
are the same on every machine. Seconds are shown, and belong to one machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.nets.attention import Attend
from diffedu.samplers.grid import time_grid

Counter = Callable[[nn.Module, tuple[Any, ...], Tensor], int]


def _linear(layer: nn.Linear, inputs: tuple[Any, ...], out: Tensor) -> int:
    """Each output element is a dot product over the inputs."""
    return 2 * out.numel() * layer.in_features


def _convolution(layer: Any, inputs: tuple[Any, ...], out: Tensor) -> int:
    """Each output element is a dot product over a window of a group's channels."""
    window = layer.in_channels // layer.groups * prod(layer.kernel_size)
    return 2 * out.numel() * window


def _attention(layer: Attend, inputs: tuple[Any, ...], out: Tensor) -> int:
    """Two products: queries with keys, and weights with values."""
    q, k, v = inputs[:3]
    pairs = prod(q.shape[:-1]) * k.shape[-2]
    return 2 * pairs * (q.shape[-1] + v.shape[-1])


COUNTERS: dict[type[nn.Module], Counter] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    Attend: _attention,
}
# what has weights and hardly any work in them
CHEAP = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d, nn.Embedding)


@dataclass
class Meter:
    """What was seen of a network while it was watched.

    Attributes:
        calls: how often it was called.
        flops: floating-point operations; a multiplication and an addition are 2.
        seconds: on the clock, for everything inside the block.
        layers: operations of each layer, by name.
    """

    calls: int
    flops: int
    seconds: float
    layers: dict[str, int]


@contextmanager
def meter(net: nn.Module) -> Iterator[Meter]:
    """Watch a network: `with cost.meter(net) as seen: ...`, then read `seen`.

    Args:
        net: a network, or a denoiser around one.

    Yields:
        a `Meter` that counts as the network runs; its seconds are set at the end.

    Raises:
        ValueError: if a layer with weights of its own is of a kind that cannot be
            counted; add it to `cost.COUNTERS`.

    Counted are linear layers, convolutions and the products of attention, as is
    usual; biases, norms, activations and interpolation are left out, and so is what
    runs backwards.
    """
    seen = Meter(0, 0, 0.0, {})
    hooks = [net.register_forward_pre_hook(lambda *_: _add_call(seen))]
    for name, layer in net.named_modules():
        counter = COUNTERS.get(type(layer))
        if counter:
            hooks.append(layer.register_forward_hook(_adder(seen, name, counter)))
        elif list(layer.parameters()) and not list(layer.children()):
            known = ", ".join(kind.__name__ for kind in COUNTERS)
            require(
                isinstance(layer, CHEAP),
                f'layer "{name}" is a {type(layer).__name__} with weights and has no '
                f"counter; there are {known}. Add one to cost.COUNTERS",
            )
    begin = time.perf_counter()
    try:
        yield seen
    finally:
        seen.seconds = time.perf_counter() - begin
        for hook in hooks:
            hook.remove()


def _add_call(seen: Meter) -> None:
    seen.calls += 1


def _adder(seen: Meter, name: str, counter: Counter) -> Callable[..., None]:
    def add(layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> None:
        count = counter(layer, inputs, out)
        seen.flops += count
        seen.layers[name] = seen.layers.get(name, 0) + count

    return add


def energy_joules(
    flops: float | None = None,
    joules_per_flop: float | None = None,
    seconds: float | None = None,
    watts: float | None = None,
) -> float:
    """An estimate of energy in joules, from figures of your own machine.

    Args:
        flops: counted operations.
        joules_per_flop: what one of them takes on your machine.
        seconds: or: the time it took.
        watts: the power that the machine draws meanwhile, measured or from its label.

    Raises:
        ValueError: unless one whole pair is given; the library knows no default.

    Neither pair has the idle machine, cooling, or the making of it; a wattmeter is
    better than both. Measured figures of many models: (arXiv 2311.16863).
    """
    pairs = [(flops, joules_per_flop), (seconds, watts)]
    whole = [p for p in pairs if None not in p]
    touched = [p for p in pairs if p != (None, None)]
    require(
        len(whole) == 1 and touched == whole,
        "give flops and joules_per_flop, or seconds and watts; these are properties of "
        "your machine and have no default",
    )
    (amount, rate) = whole[0]
    require(amount >= 0 and rate >= 0, f"need 0 or more, got {amount} and {rate}")
    return amount * rate


@dataclass(frozen=True)
class Entry:
    """One line of the scoreboard.

    Attributes:
        name: the sampler or model.
        nfe: calls of the network for one sample.
        error: how far from right, in the unit of the measure.
        flops: operations for one sample.
        seconds: for one sample, on this machine.
    """

    name: str
    nfe: int
    error: float
    flops: float
    seconds: float


def enter(
    name: str,
    sampler: Callable[..., Tensor],
    denoise: nn.Module,
    x_T: Tensor,
    times: Tensor,
    measure: Callable[[Tensor], float | Tensor],
    **options: Any,
) -> Entry:
    """Run a sampler once, and measure its end and its cost.

    Args:
        name: what to call it.
        sampler: one of `samplers`.
        denoise: any denoiser; calls of this object are the NFE.
        x_T: where the walk starts, shape (B, ...).
        times: falling times, shape (steps + 1,).
        measure: maps the end, shape (B, ...), to one number, smaller is better.
        **options: passed to the sampler.
    """
    with meter(denoise) as seen:
        end = sampler(denoise, x_T, times, **options)
    each = len(x_T)
    error = float(measure(end))
    return Entry(name, seen.calls, error, seen.flops / each, seen.seconds / each)


LOOKS_A_STEP = {"heun": 2, "dpm_solver_2": 2}


def scoreboard(
    samplers: Mapping[str, Callable[..., Tensor]],
    denoise: nn.Module,
    x_T: Tensor,
    budgets: list[int],
    measure: Callable[[Tensor], float | Tensor],
    spacing: str = "log_snr",
    generator: torch.Generator | None = None,
) -> list[Entry]:
    """Every sampler at every budget of evaluations, from the same noise.

    Args:
        samplers: name to sampler; names of two-look samplers are the library's.
        denoise: any denoiser.
        x_T: where all walks start, shape (B, ...), at schedule.t_max.
        budgets: the most evaluations a walk may take, each at least 1.
        measure: maps an end, shape (B, ...), to one number, smaller is better.
        spacing: of the times, as of `samplers.time_grid`.
        generator: noise of those that add some.

    Returns:
        one entry a sampler and budget, with the evaluations it really took.
    """
    require(min(budgets) >= 1, f"a walk takes at least 1 evaluation, got {budgets}")
    entries = []
    for name, sampler in samplers.items():
        looks = LOOKS_A_STEP.get(name, 1)
        # the step to 0 takes one look, whatever the sampler
        for steps in dict.fromkeys((budget - 1) // looks + 1 for budget in budgets):
            times = time_grid(denoise.schedule, steps, spacing)
            entries.append(
                enter(name, sampler, denoise, x_T, times, measure, generator=generator)
            )
    return entries
