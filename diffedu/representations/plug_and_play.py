"""Plug-and-play: a picture's features and self-attention steer another caption."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup
from diffedu.features.hooks import Change, network_of
from diffedu.nets.attention import SelfAttention
from diffedu.representations.looking import products
from diffedu.representations.pairs import Paired, share_of, source_map, source_states


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
