"""Hidden states read and changed by block name, through hooks.

Networks carry no code for it. Names are those of the network's modules;
`net.blocks()` lists the ones worth looking at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from diffedu.errors import lookup, require

Change = Callable[..., Tensor]
Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def network_of(denoise: nn.Module) -> nn.Module:
    """The network at the bottom of a denoiser and its wrappers.

    Raises:
        ValueError: if there is none, as in a closed-form denoiser.
    """
    module = denoise
    while hasattr(module, "inner"):
        module = module.inner
    net = getattr(module, "net", None)
    require(
        isinstance(net, nn.Module),
        f"{type(module).__name__} has no network to look into; features need a "
        "Denoiser around an nn.Module, or a wrapper of one",
    )
    return net


def blocks_of(denoise: nn.Module) -> list[str]:
    """The names of the network's hidden states, in order from input to output."""
    net = network_of(denoise)
    own = callable(getattr(net, "blocks", None))
    return list(net.blocks()) if own else [name for name, _ in net.named_children()]


def _module(net: nn.Module, name: str) -> nn.Module:
    """The module of that name; a ValueError suggests the nearest one."""
    return lookup(dict(net.named_modules()), name, "block")


@contextmanager
def _hooked(denoise: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Forward hooks on named modules of the network, taken off again in any case."""
    net = network_of(denoise)
    chosen = {_module(net, name): hook for name, hook in hooks.items()}
    handles = [m.register_forward_hook(hook) for m, hook in chosen.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record(
    denoise: nn.Module, blocks: Sequence[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """The hidden states of every call made inside the `with`, gradients included.

    Args:
        denoise: a Denoiser, or a wrapper of one.
        blocks: names of modules of its network; None is all of `blocks_of`.

    Yields:
        a dict from name to the output of the last call, (B, C, H, W) in a U-Net and
        (B, tokens, C) in a transformer. A wrapper that calls its network several
        times leaves the last call's.

    Raises:
        ValueError: if a name is unknown, or the denoiser has no network.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    names = blocks_of(denoise) if blocks is None else names_of(blocks)
    with _hooked(denoise, {name: keep(name) for name in names}):
        yield seen


@contextmanager
def edit(denoise: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Replace hidden states by functions of them, for every call inside the `with`.

    Args:
        denoise: a Denoiser, or a wrapper of one.
        changes: for each block a function. With one argument it is given the block's
            output; with more also the block's inputs, as `lambda h, q, k, v: v` for
            the module `attend` of an attention. It answers a tensor of h's shape.

    Raises:
        ValueError: if a name is unknown, or an answer has another shape.
    """

    def change(name: str, function: Change) -> Hook:
        alone = len(inspect.signature(function).parameters) == 1

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
            new = function(output) if alone else function(output, *inputs)
            same = isinstance(new, Tensor) and new.shape == output.shape
            require(same, f"the edit of {name} must answer {tuple(output.shape)}")
            return new

        return hook

    with _hooked(denoise, {name: change(name, f) for name, f in changes.items()}):
        yield


def names_of(blocks: Sequence[str]) -> list[str]:
    """The blocks as a list; one name alone is a list of one."""
    names = [blocks] if isinstance(blocks, str) else list(blocks)
    require(len(names) > 0, "blocks is empty; None stands for all of them")
    return names
