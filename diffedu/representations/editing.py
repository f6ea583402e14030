"""Prompt-to-prompt: a picture and its edited twin are drawn side by side.

A denoiser around a denoiser, called on a batch of pairs: the sources fill its first
half, their twins the second. While the noise is high, the twin looks where its source
does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffedu.denoiser import DenoiserBase
from diffedu.errors import lookup, require, require_finite
from diffedu.features.hooks import Change
from diffedu.nets.attention import Attend, SelfAttention
from diffedu.nets.captions import CrossAttention
from diffedu.prediction import Prediction
from diffedu.representations.looking import (
    ALIGNMENTS,
    as_pictures,
    edited_maps,
    products,
)
from diffedu.representations.pairs import Paired, share_of, source_map
from diffedu.samplers.walk import Step


class PromptToPrompt(Paired):
    """Prompt-to-prompt: the twin looks at its words where the source looked at its own.

    Cross-attention maps are edited while t > 1 - cross, those of self-attention are
    the source's while t > 1 - self_attention: on uniform times, for these shares of
    the steps. Calls without a caption, the unconditional half of classifier-free
    guidance, are left alone, as in the released code.

    Args:
        inner: a denoiser whose network reads captions.
        cross: share of the walk with edited cross-attention, the paper's tau.
        self_attention: share of the walk with the source's self-attention.
        alignment: "swap", for captions that differ in words at equal places, or
            "refine", for words added or left out.
        factors: strength of each word of the edited captions, (L,) or (B, L); 1 leaves
            a word alone.
        shown: cross-attention products whose maps `last` averages; None is all.

    Attributes:
        last: where each word looked at the last call with captions, before any edit,
            (2 B, L, s, s) at the size of x, or None.

    Raises:
        ValueError: for a share outside [0, 1], an unknown alignment, factors that are
            not finite, or a network without cross-attention.

    Source: (arXiv 2208.01626, algorithm 1 and section 3.2).
    """

    def __init__(
        self,
        inner: DenoiserBase,
        cross: float = 0.8,
        self_attention: float = 0.4,
        alignment: str = "swap",
        factors: Tensor | Sequence[float] | None = None,
        shown: Sequence[str] | None = None,
    ) -> None:
        super().__init__(inner)
        self.cross = share_of(cross, "cross")
        self.self_attention = share_of(self_attention, "self_attention")
        self.align = lookup(ALIGNMENTS, alignment, "alignment")
        self.factors = None if factors is None else torch.as_tensor(factors).float()
        if self.factors is not None:
            require_finite(self.factors, "factors")
        self.crosses = products(inner, CrossAttention)
        self.selves = products(inner, SelfAttention)
        require(
            bool(self.crosses), "this network reads no captions: no cross-attention"
        )
        self.shown = self.crosses if shown is None else list(shown)
        for name in self.shown:
            lookup(dict.fromkeys(self.crosses), name, "cross-attention")
        self.last: Tensor | None = None
        self._seen: list[Tensor] = []

    def changes(self, t: float, caption: Tensor | None) -> dict[str, Change]:
        """What is to be edited at time t, for captions (2 B, L) or None."""
        if caption is None:
            return {}
        alignment = self.align(*caption.chunk(2))
        self._seen = []
        changes: dict[str, Change] = {
            name: self._edit_words(alignment, t > 1 - self.cross, name in self.shown)
            for name in self.crosses
        }
        if t > 1 - self.self_attention:
            changes |= dict.fromkeys(self.selves, source_map)
        return changes

    def _edit_words(self, alignment: Tensor, on: bool, shown: bool) -> Change:
        """The change of one cross-attention; it notes the maps first."""

        def change(h: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            maps = Attend.weights(q, k, mask)
            if shown:
                self._seen.append(maps)
            if not on:
                return h
            source, twin = maps.chunk(2)
            new = edited_maps(source, twin, alignment, self.factors)
            return torch.cat([h[: len(source)], new @ v[len(source) :]])

        return change

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        caption: Tensor | None = None,
        **condition: Tensor | None,
    ) -> Prediction:
        """Look at pairs x_t (2 B, C, s, s) at one time t, with captions (2 B, L)."""
        seen = super().forward(x, t, caption, **condition)
        if caption is not None:
            self.last = as_pictures(self._seen, x.shape[-1])
        return seen


class LocalBlend:
    """Keep the source outside of where some words look: an `after` of a sampler.

    The words' maps are averaged over the steps so far, widened to neighbours and
    divided by their maximum. Where neither the source's nor the twin's is above the
    threshold, the twin's state becomes the source's.

    Args:
        pair: the PromptToPrompt that walks.
        words: which words are looked at, (2 B, L) bool, for sources and twins.
        threshold: share of the maximum.

    Raises:
        ValueError: for a threshold outside [0, 1].

    Source: (arXiv 2208.01626, section 3.2, local editing; the widening and division
    are the released code's).
    """

    def __init__(
        self, pair: PromptToPrompt, words: Tensor, threshold: float = 0.3
    ) -> None:
        require(0 <= threshold <= 1, f"threshold lies in [0, 1], got {threshold}")
        self.pair, self.words, self.threshold = pair, words, threshold
        self.total: Tensor | None = None

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """Blend the state x (2 B, C, s, s) that a step reached."""
        maps = self.pair.last
        require(
            maps is not None, "nothing was looked at: walk with the pair's denoiser"
        )
        shown = self.words.to(maps)[:, :, None, None]
        now = (maps * shown).sum(1)
        self.total = now if step.index == 0 else self.total + now
        source, twin = x.chunk(2)
        inside = self.mask().any(0)[:, None]
        return torch.cat([source, torch.where(inside, twin, source)])

    def mask(self) -> Tensor:
        """Where the words of source and twin look, (2, B, s, s) bool."""
        wide = F.max_pool2d(self.total, 3, stride=1, padding=1)
        share = wide / wide.amax((1, 2), keepdim=True)
        return torch.stack((share > self.threshold).chunk(2))
