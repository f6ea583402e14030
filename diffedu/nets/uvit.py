"""U-ViT: everything is a token, and what early blocks saw is kept for late ones.

Patches, the time and the class stand in one row of tokens, and block i from the end
reads what block i from the start answered (2209.12152, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.nets.conditions import (
    Condition,
    as_times,
    require_input,
    require_positive,
    zero_,
)
from diffedu.nets.tokens import TokenAttention, feed_forward, patchify, unpatchify


class TransformerBlock(nn.Module):
    """A plain transformer block, h + attention(h), then h + network(h), after norms.

    Args:
        width: features of a token.
        heads: number of attention heads.
        skip: whether it first merges a second row of tokens into its own.
    """

    def __init__(self, width: int, heads: int = 4, skip: bool = False) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = TokenAttention(width, heads)
        self.feed_forward = feed_forward(width)

    def forward(self, h: Tensor, early: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, width), and those of an early block, to that shape."""
        if self.merge is not None:
            h = self.merge(torch.cat([h, early], dim=2))
        h = h + self.mixer(self.norm1(h))
        return h + self.feed_forward(self.norm2(h))


class UViT(nn.Module):
    """A transformer with long skips for images: `net(x, t, label=..., keep=...)`.

    Its hidden states are the outputs of the modules named by `blocks()`: tokens
    (B, extras + N, width); the first is the time, the second the class if there are
    classes, and the N = (size / patch)^2 others are patches, row by row.

    Args:
        channels: channels of x.
        size: height and width of x in pixels.
        patch: side of a patch, divides the size.
        width: features of a token, a multiple of `heads`.
        depth: number of blocks, odd: as many before the middle one as after it.
        heads: number of attention heads.
        classes: number of classes, or None for a network without labels.
        outputs: channels of the answer; None means `channels`.
        skips: whether late blocks read early ones.

    Raises:
        ValueError: if a number is out of range or does not divide another.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 16,
        patch: int = 2,
        width: int = 96,
        depth: int = 5,
        heads: int = 4,
        classes: int | None = None,
        outputs: int | None = None,
        skips: bool = True,
    ) -> None:
        super().__init__()
        outputs = channels if outputs is None else outputs
        require_positive(channels=channels, size=size, patch=patch, outputs=outputs)
        require_positive(width=width, depth=depth)
        require(size % patch == 0, f"patch {patch} does not divide size {size}")
        require(depth % 2 == 1, f"depth {depth} must be odd, so that one is the middle")
        self.channels, self.size, self.patch = channels, size, patch
        self.outputs, self.grid, self.skips = outputs, size // patch, skips
        self.condition = Condition(width, classes)
        self.extras = 1 if classes is None else 2
        self.stem = nn.Linear(channels * patch**2, width)
        self.places = nn.Parameter(torch.randn(self.extras + self.grid**2, width) / 50)
        self.down, self.up = (
            nn.ModuleList(
                TransformerBlock(width, heads, skip) for _ in range(depth // 2)
            )
            for skip in (False, skips)
        )
        self.middle = TransformerBlock(width, heads)
        self.norm = nn.LayerNorm(width)
        self.head = zero_(nn.Linear(width, outputs * patch**2))
        # the paper's last convolution; it starts as the identity
        self.smooth = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.smooth.bias)
        nn.init.dirac_(self.smooth.weight)

    @property
    def classes(self) -> int | None:
        """The number of classes, None for a network without labels."""
        return self.condition.classes

    def blocks(self) -> list[str]:
        """Names of the modules whose outputs are the hidden states, in order."""
        half = range(len(self.down))
        return [*(f"down.{i}" for i in half), "middle", *(f"up.{i}" for i in half)]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Answer one image a sample.

        Args:
            x: shape (B, channels, size, size).
            t: time, or any real number that says how noisy x is, (B,) or ().
            label: class numbers, (B,) or (), int64; -1 or None is unconditional.
            keep: who keeps its label, (B,) bool.

        Returns:
            shape (B, outputs, size, size).

        Raises:
            ValueError: if a shape, dtype, device or class number does not fit.
        """
        require_input(x, (self.channels, self.size, self.size), self.stem.weight)
        h, early = self.tokens(x, t, label, keep), []
        for block in self.down:
            h = block(h)
            early.append(h)
        h = self.middle(h)
        for block in self.up:
            h = block(h, early.pop())
        patches = self.head(self.norm(h[:, self.extras :]))
        return self.smooth(unpatchify(patches, self.patch, self.outputs))

    def tokens(
        self, x: Tensor, t: Tensor, label: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """The row of all tokens, (B, extras + N, width); arguments as `forward`."""
        patches = self.stem(patchify(x, self.patch))
        if self.classes is None:
            row = [self.condition(x, t, label, keep)[:, None], patches]
        else:
            time = self.condition.time(as_times(t, x))
            words = self.condition.label(self.condition.rows(label, keep, x))
            row = [time[:, None], words[:, None], patches]
        return torch.cat(row, dim=1) + self.places
