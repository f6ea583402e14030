"""Denoisers of pairs: what a source holds inside is handed to its edited twin."""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.errors import require
from diffedu.features.hooks import Change, edit
from diffedu.guidance.base import Guidance
from diffedu.nets.attention import Attend
from diffedu.prediction import Prediction


def share_of(share: float, name: str) -> float:
    """A share of the walk in [0, 1], or a ValueError that names it."""
    fits = isinstance(share, int | float) and 0 <= share <= 1
    require(
        fits, f"{name} is the share of the walk that is edited, 0 to 1; got {share}"
    )
    return float(share)


class Paired(Guidance):
    """A denoiser of pairs, (2 B, ...): what a source holds inside goes to its twin.

    The sources come first, and nothing changes for them. Put guidance around it, as
    in `ClassifierFree(PromptToPrompt(denoise), 3.0)`, and walk with any sampler.

    Args:
        inner: any denoiser whose network `features.edit` can reach.
    """

    def changes(self, t: float, caption: Tensor | None) -> dict[str, Change]:
        """What is to be edited at time t, for captions (2 B, L) or None."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        caption: Tensor | None = None,
        **condition: Tensor | None,
    ) -> Prediction:
        """Look at pairs x_t (2 B, ...) at one time t, with captions (2 B, L)."""
        require(len(x) % 2 == 0, f"pairs make an even batch, got {len(x)} samples")
        times = torch.as_tensor(t)
        require(bool((times == times.max()).all()), "pairs are drawn at one time t")
        fits = caption is None or (caption.dim() == 2 and len(caption) == len(x))
        require(fits, "each picture of a pair needs its caption: shape (2 B, L)")
        changes = self.changes(float(times.max()), caption)
        with edit(self.inner, changes):
            return self.inner(x, t, caption=caption, **condition)


def source_states(h: Tensor) -> Tensor:
    """The twin's hidden state (B, ...) becomes its source's."""
    return h[: len(h) // 2].repeat(2, *(1,) * (h.dim() - 1))


def source_map(h: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    """The twin's values (2 B, heads, N, d) under its source's attention map."""
    n = len(h) // 2
    return torch.cat([h[:n], Attend.weights(q[:n], k[:n]) @ v[n:]])
