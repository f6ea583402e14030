"""A diffusion transformer: patches as tokens, and a condition that opens each block.

Every block is the identity before training: its condition scales, shifts and gates
what it does, and the gates start at zero (2212.09748, section 3.2).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require
from diffedu.nets.captions import Context, CrossAttention, conditioning
from diffedu.nets.conditions import require_input, require_positive, zero_
from diffedu.nets.tokens import (
    Mixer,
    TokenAttention,
    feed_forward,
    grid_positions,
    patchify,
    unpatchify,
)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """h (1 + scale) + shift: tokens (B, N, w) by vectors (B, w)."""
    return h * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """adaLN-Zero: a transformer block that its condition scales, shifts and gates.

    Args:
        width: features of a token.
        condition: length of the condition vector.
        mixer: makes the module that mixes tokens from their width.
        words: features of a word if the block looks at captions, or None.
        heads: heads of that look.
    """

    def __init__(
        self,
        width: int,
        condition: int,
        mixer: Mixer = TokenAttention,
        words: int | None = None,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mixer, self.feed_forward = mixer(width), feed_forward(width)
        self.modulation = zero_(nn.Linear(condition, 6 * width))
        self.cross = None if words is None else CrossAttention(width, words, heads)

    def forward(
        self, h: Tensor, condition: Tensor, context: Context | None = None
    ) -> Tensor:
        """Map tokens (B, N, width) and condition (B, c) to tokens of that shape."""
        parts = self.modulation(condition).chunk(6, dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        mixed = self.mixer(modulate(self.norm1(h), shift1, scale1))
        h = h + gate1[:, None] * mixed
        if self.cross is not None:
            h = self.cross(h, context)
        inner = self.feed_forward(modulate(self.norm2(h), shift2, scale2))
        return h + gate2[:, None] * inner


class TokensOut(nn.Module):
    """The last layer: normalise, scale and shift by the condition, read out patches.

    Args:
        width: features of a token.
        condition: length of the condition vector.
        outputs: numbers a patch.
    """

    def __init__(self, width: int, condition: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zero_(nn.Linear(condition, 2 * width))
        self.linear = zero_(nn.Linear(width, outputs))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (B, N, width) and condition (B, c) to (B, N, outputs)."""
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm(h), shift, scale))


class DiT(nn.Module):
    """A transformer for images: `net(x, t, label=..., caption=..., keep=...)`.

    Its hidden states are the outputs of the modules named by `blocks()`: tokens
    (B, N, width), N = (size / patch)^2, row by row. Halving the patch makes four
    times as many tokens.

    Args:
        channels: channels of x.
        size: height and width of x in pixels.
        patch: side of a patch, divides the size.
        width: features of a token, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        classes: number of classes, or None for a network without labels.
        outputs: channels of the answer; None means `channels`.
        vocabulary: number of token ids if every block reads captions, or None.
        mixer: makes the module that mixes tokens (B, N, width) from the width; None
            is self-attention. `nets.StateSpace` is another.

    Raises:
        ValueError: if a number is out of range or does not divide another.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 16,
        patch: int = 2,
        width: int = 96,
        depth: int = 6,
        heads: int = 4,
        classes: int | None = None,
        outputs: int | None = None,
        vocabulary: int | None = None,
        mixer: Mixer | None = None,
    ) -> None:
        super().__init__()
        outputs = channels if outputs is None else outputs
        require_positive(channels=channels, size=size, patch=patch, outputs=outputs)
        require_positive(width=width, depth=depth, heads=heads)
        require(size % patch == 0, f"patch {patch} does not divide size {size}")
        self.channels, self.size, self.patch = channels, size, patch
        self.outputs, self.grid = outputs, size // patch
        self.condition = conditioning(width, classes, vocabulary)
        self.stem = nn.Linear(channels * patch**2, width)
        places = grid_positions(self.grid, width)
        self.register_buffer("places", places, persistent=False)
        mixer = partial(TokenAttention, heads=heads) if mixer is None else mixer
        words = None if vocabulary is None else width
        self.block = nn.ModuleList(
            DiTBlock(width, width, mixer, words, heads) for _ in range(depth)
        )
        self.head = TokensOut(width, width, outputs * patch**2)

    @property
    def classes(self) -> int | None:
        """The number of classes, None for a network without labels."""
        return self.condition.classes

    def blocks(self) -> list[str]:
        """Names of the modules whose outputs are the hidden states, in order."""
        return [f"block.{i}" for i in range(len(self.block))]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
        caption: Tensor | None = None,
    ) -> Tensor:
        """Answer one image a sample.

        Args:
            x: shape (B, channels, size, size).
            t: time, or any real number that says how noisy x is, (B,) or ().
            label: class numbers, (B,) or (), int64; -1 or None is unconditional.
            keep: who keeps its label and its caption, (B,) bool.
            caption: token ids, (B, L) or (L,), int64; 0 is no word, and None or a
                row of zeros is unconditional.

        Returns:
            shape (B, outputs, size, size).

        Raises:
            ValueError: if a shape, dtype, device, class or token id does not fit.
        """
        require_input(x, (self.channels, self.size, self.size), self.stem.weight)
        condition = F.silu(self.condition(x, t, label, keep))
        context = self.condition.context(x, caption, keep)
        h = self.stem(patchify(x, self.patch)) + self.places.to(x.dtype)
        for block in self.block:
            h = block(h, condition, context)
        return unpatchify(self.head(h, condition), self.patch, self.outputs)
