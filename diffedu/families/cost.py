"""The network that all four families are made of, and what running one costs.

Cost is counted, not timed: a count is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from diffedu.errors import require
from diffedu.nets.conditions import require_positive


def mlp(inputs: int, outputs: int, width: int = 64, depth: int = 2) -> nn.Sequential:
    """A plain multilayer perceptron with SiLU between its layers.

    Args:
        inputs: length of what it takes.
        outputs: length of what it answers.
        width: number of hidden features.
        depth: number of hidden layers.

    Raises:
        ValueError: if one of the numbers is not a whole one above 0.
    """
    require_positive(inputs=inputs, outputs=outputs, width=width, depth=depth)
    sizes = [inputs, *[width] * depth]
    layers: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Cost(NamedTuple):
    """What one run took: floating-point operations, and calls of one network.

    A product of matrices (a, b) and (b, c) counts 2abc operations, forwards and
    backwards; everything else, such as activations and the optimiser, counts nothing.
    """

    flops: int
    calls: int


class _Products(TorchDispatchMode):
    """Adds up the operations of every product, by torch's own table of them.

    torch's FlopCounterMode would do, but refuses a gradient inside of a loss.
    """

    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        of_one = flop_registry.get(func._overloadpacket)
        if of_one is not None:
            self.flops += of_one(*args, **kwargs, out_val=out)
        return out


def count(run: Callable[[], Any], network: nn.Module | None = None) -> Cost:
    """Run a function once and count what it costs.

    Args:
        run: called without arguments; whatever it trains or draws stays so.
        network: the module whose calls are counted; None counts none.

    Returns:
        the operations of matrix products, and how often the network was called.

    Raises:
        TypeError: if `run` can't be called.
    """
    require(
        callable(run),
        f"count takes a function, got {type(run).__name__}; write count(lambda: ...)",
        TypeError,
    )
    calls: list[None] = []
    hook = None
    if network is not None:
        hook = network.register_forward_hook(lambda *_: calls.append(None))
    try:
        with _Products() as products:
            run()
    finally:
        if hook is not None:
            hook.remove()
    return Cost(products.flops, len(calls))


def require_points(x: torch.Tensor, dim: int, name: str = "x") -> None:
    """ValueError unless a tensor has shape (B, dim) and a floating dtype."""
    ok = x.dim() == 2 and x.shape[1] == dim and x.is_floating_point()
    require(
        ok,
        f"{name} needs shape (B, {dim}) and a floating dtype, got {tuple(x.shape)} "
        f"of {x.dtype}",
    )
