"""Self-attention over the pixels of an image, its product a module of its own."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require
from diffedu.nets.conditions import require_positive, zero_


class Attend(nn.Module):
    """The attention product alone, a module so that a hook can read or change it."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """softmax(q k^T / sqrt(d)) v (1706.03762, eq. 1).

        Args:
            q: queries, (B, heads, N, d).
            k: keys, (B, heads, M, d).
            v: values, (B, heads, M, d).
            mask: which keys count, bool, broadcasts to (B, heads, N, M).

        Returns:
            shape (B, heads, N, d).
        """
        return self.weights(q, k, mask) @ v

    @staticmethod
    def weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
        """The map itself, (B, heads, N, M): each row sums to 1. Args as `forward`."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return F.softmax(scores, dim=-1)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups up to 8 that divides the channels."""
    groups = max(g for g in range(1, 9) if channels % g == 0)
    return nn.GroupNorm(groups, channels, affine=affine)


class SelfAttention(nn.Module):
    """Every pixel looks at every other one; the product itself is `attend`.

    Args:
        channels: number of channels, a multiple of `heads`.
        heads: number of attention heads.

    Raises:
        ValueError: if the channels cannot be divided among the heads.
    """

    def __init__(self, channels: int, heads: int = 1) -> None:
        super().__init__()
        require_positive(channels=channels, heads=heads)
        require(
            channels % heads == 0,
            f"{channels} channels cannot be divided among {heads} heads",
        )
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.attend = Attend()
        self.out = zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        split = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = split.transpose(-1, -2).unbind(1)  # each (B, heads, H W, d)
        seen = self.attend(q, k, v).transpose(-1, -2).reshape(h.shape)
        return h + self.out(seen)
