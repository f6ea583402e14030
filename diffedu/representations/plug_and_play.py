"""Plug-and-play: a picture's features and self-attention steer another caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup, require
from diffedu.features.hooks import Change, network_of
from diffedu.nets.attention import SelfAttention
from diffedu.representations.looking import products
from diffedu.representations.pairs import Paired, share_of, source_map, source_states
from diffedu.samplers import ddim_invert
from diffedu.samplers.walk import Step


class PlugAndPlay(Paired):
    """Plug-and-play: the twin takes over its source's features and self-attention.

    A decoder block's residual features are the source's while t > 1 - features, the
    queries and keys of its self-attention while t > 1 - attention: on uniform times,
    for these shares of the steps. Both calls of classifier-free guidance are edited.
    The source is drawn again from its own noise, for a given picture that of
    `samplers.ddim_invert`, with an empty caption: a row of zeros.

    Args:
        inner: a denoiser whose network has named blocks, such as a UNet.
        features: share of the walk with the source's features, set by tau_f.
        attention: share of the walk with the source's self-attention, set by tau_A.
        feature_blocks: modules whose output is handed over.
        attention_blocks: self-attention products; None is every one on the way up.

    Raises:
        ValueError: for a share outside [0, 1], or a block that is unknown.

    Source: (arXiv 2211.12572, algorithm 1); the released code injects what a residual
    block adds to its input, and 0.8 and 0.5 are its shares.
    """

    def __init__(
        self,
        inner: DenoiserBase,
        features: float = 0.8,
        attention: float = 0.5,
        feature_blocks: Sequence[str] = ("up.1.conv2",),
        attention_blocks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(inner)
        self.features = share_of(features, "features")
        self.attention = share_of(attention, "attention")
        known = products(inner, SelfAttention)
        own = [name for name in known if name.startswith("up.")]
        self.attention_blocks = list(
            own if attention_blocks is None else attention_blocks
        )
        self.feature_blocks = list(feature_blocks)
        for name in self.attention_blocks:
            lookup(dict.fromkeys(known), name, "self-attention")
        modules = dict(network_of(inner).named_modules())
        for name in self.feature_blocks:
            lookup(modules, name, "block")

    def changes(self, t: float, caption: Tensor | None) -> dict[str, Change]:
        """What is to be edited at time t; captions (2 B, L) make no difference."""
        changes: dict[str, Change] = {}
        if t > 1 - self.features:
            changes |= dict.fromkeys(self.feature_blocks, source_states)
        if t > 1 - self.attention:
            changes |= dict.fromkeys(self.attention_blocks, source_map)
        return changes


def inverted_walk(
    denoise: DenoiserBase,
    x0: Tensor,
    times: Tensor,
    *,
    refine: int = 0,
    **condition: Tensor | None,
) -> Tensor:
    """Every state of DDIM's inversion of given pictures, from noise down to data.

    Args:
        denoise: any denoiser.
        x0: pictures, (B, ...).
        times: falling times, (steps + 1,), that end in 0 or where x0 stands.
        refine: fixed-point iterations a step, as of `samplers.ddim_invert`.
        **condition: passed to the denoiser.

    Returns:
        (steps + 1, B, ...): the state at each of the times; the last one is x0.

    Source: (arXiv 2010.02502, section 5.4).
    """
    states = [x0]
    for i in range(len(times) - 2, -1, -1):
        step = times[i : i + 2]
        up = ddim_invert(denoise, states[-1], step, refine=refine, **condition)
        states.append(up)
    return torch.stack(states[::-1])


class Replay:
    """Keep the sources of pairs on states that are known: an `after` of a sampler.

    What inversion gets wrong then reaches a twin's source no more.

    Args:
        states: the sources' states at each time of the walk, (steps + 1, B, ...).

    Source: the released code of (arXiv 2211.12572) loads the inversion's states.
    """

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Put the source's own state before its twin's, x (2 B, ...)."""
        known = self.states[step.index + 1]
        require(
            len(x) == 2 * len(known),
            f"{len(known)} sources make {2 * len(known)} samples, got {len(x)}",
        )
        return torch.cat([known, x[len(known) :]])
