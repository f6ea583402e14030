"""The network for images of 8 to 32 pixels: a U-Net with named blocks.

Residual blocks go down to coarse grids and up again; every block on the way up
sees what the one opposite saw on the way down (1505.04597).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require
from diffedu.nets.attention import SelfAttention, group_norm
from diffedu.nets.captions import Context, CrossAttention, conditioning
from diffedu.nets.conditions import require_input, require_positive, zero_


class UNetBlock(nn.Module):
    """A residual block that time and class scale and shift, with optional attention.

    Its output is the hidden state that goes by its name.

    Args:
        before: channels that come in.
        channels: channels that go out.
        condition: length of the condition vector.
        down: halve the grid first.
        attention: end with self-attention.
        heads: its number of heads.
        dropout: share of features set to zero in training.
        words: look at the words of a caption last.
    """

    def __init__(
        self,
        before: int,
        channels: int,
        condition: int,
        down: bool = False,
        attention: bool = False,
        heads: int = 1,
        dropout: float = 0.0,
        words: bool = False,
    ) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()
        self.norm1, self.norm2 = group_norm(before), group_norm(channels, affine=False)
        self.conv1 = nn.Conv2d(before, channels, 3, padding=1)
        self.scale_shift = nn.Linear(condition, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_(nn.Conv2d(channels, channels, 3, padding=1))
        same = before == channels
        self.skip = nn.Identity() if same else nn.Conv2d(before, channels, 1)
        self.attention = SelfAttention(channels, heads) if attention else nn.Identity()
        self.cross = CrossAttention(channels, condition, heads) if words else None

    def forward(
        self, h: Tensor, condition: Tensor, context: Context | None = None
    ) -> Tensor:
        """Map h (B, before, H, W) and condition (B, c) to (B, channels, H', W')."""
        h = self.pool(h)
        scale, shift = self.scale_shift(condition)[..., None, None].chunk(2, dim=1)
        inner = self.norm2(self.conv1(F.silu(self.norm1(h))))
        inner = self.dropout(F.silu(inner * (1 + scale) + shift))
        h = self.attention(self.skip(h) + self.conv2(inner))
        return h if self.cross is None else self.cross(h, context)


class Grow(nn.Module):
    """Double the grid; the 1x1 convolution goes first, where it costs a quarter.

    Args:
        before: channels that come in.
        channels: channels that go out.
    """

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(before, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, channels, 2 H, 2 W)."""
        return F.interpolate(self.mix(h), scale_factor=2, mode="nearest")


class UNet(nn.Module):
    """A U-Net for small images: `net(x, t, label=..., caption=..., keep=...)`.

    Its hidden states are the outputs of the modules named by `blocks()`: "down.0",
    ..., "middle", "up.0", ... Level i works on a grid of size / 2^i pixels with
    `width * multipliers[i]` channels. The defaults have 0.6 M parameters, for
    8 pixels; width 40 has 0.9 M, for 16 to 32.

    Args:
        channels: channels of x.
        size: height and width of x in pixels.
        width: channels of the first level.
        multipliers: one number a level.
        blocks: residual blocks a level, on each way.
        attention: grid sizes whose blocks end with self-attention, such as (8,).
        heads: number of attention heads.
        classes: number of classes, or None for a network without labels.
        outputs: channels of the answer; None means `channels`, and twice as many
            leave room for a learned variance.
        dropout: share of features set to zero in training.
        vocabulary: number of token ids if it reads captions, or None. The blocks
            with self-attention and the middle one then have cross-attention.

    Raises:
        ValueError: if a number is out of range, if the size cannot be halved as
            often as there are levels, or if no level has an attention's grid size.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 8,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 1,
        classes: int | None = None,
        outputs: int | None = None,
        dropout: float = 0.0,
        vocabulary: int | None = None,
    ) -> None:
        super().__init__()
        outputs = channels if outputs is None else outputs
        require_positive(channels=channels, width=width, blocks=blocks, outputs=outputs)
        grids = grid_sizes(size, multipliers, attention)
        require(0 <= dropout < 1, f"dropout must be in [0, 1), got {dropout}")
        self.channels, self.size, self.outputs = channels, size, outputs
        self.condition = conditioning(4 * width, classes, vocabulary)
        reads = vocabulary is not None
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up, self.grow = (nn.ModuleList() for _ in range(3))

        def block(before: int, after: int, grid: int, down: bool = False) -> UNetBlock:
            look = grid in attention
            words = reads and look
            return UNetBlock(
                before, after, 4 * width, down, look, heads, dropout, words
            )

        now, plan = width, []
        for multiplier, grid in zip(multipliers, grids, strict=True):
            plan += [(width * multiplier, grid)] * blocks
        for i, (after, grid) in enumerate(plan):
            self.down.append(block(now, after, grid, down=i > 0 and i % blocks == 0))
            now = after
        self.middle = block(now, now, grids[-1])
        if reads and self.middle.cross is None:
            self.middle.cross = CrossAttention(now, 4 * width, heads)
        for i, (after, grid) in reversed(list(enumerate(plan))):
            finer = (i + 1) % blocks == 0 and i + 1 < len(plan)
            self.grow.append(Grow(now, after) if finer else nn.Identity())
            self.up.append(block((after if finer else now) + after, after, grid))
            now = after
        last = zero_(nn.Conv2d(now, outputs, 3, padding=1))
        self.head = nn.Sequential(group_norm(now), nn.SiLU(), last)

    @property
    def classes(self) -> int | None:
        """The number of classes, None for a network without labels."""
        return self.condition.classes

    def blocks(self) -> list[str]:
        """Names of the modules whose outputs are the hidden states, in order."""
        down = [f"down.{i}" for i in range(len(self.down))]
        return [*down, "middle", *(f"up.{i}" for i in range(len(self.up)))]

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
            ValueError: if a shape, dtype, device or class number does not fit.
        """
        require_input(x, (self.channels, self.size, self.size), self.stem.weight)
        condition = F.silu(self.condition(x, t, label, keep))
        context = self.condition.context(x, caption, keep)
        h, skips = self.stem(x), []
        for block in self.down:
            h = block(h, condition, context)
            skips.append(h)
        h = self.middle(h, condition, context)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = block(torch.cat([grow(h), skips.pop()], dim=1), condition, context)
        return self.head(h)


def grid_sizes(
    size: int, multipliers: Sequence[int], attention: Sequence[int]
) -> list[int]:
    """The grid size of each level; ValueError if there is no such U-Net."""
    require_positive(size=size)
    require(
        isinstance(multipliers, Sequence) and len(multipliers) > 0,
        f"multipliers must be a sequence with one number a level, got {multipliers!r}",
    )
    for multiplier in multipliers:
        require_positive(multiplier=multiplier)
    halvings = len(multipliers) - 1
    require(
        size % 2**halvings == 0,
        f"size {size} cannot be halved {halvings} times; take a multiple of "
        f"{2**halvings}, or fewer multipliers",
    )
    grids = [size // 2**level for level in range(halvings + 1)]
    require(
        isinstance(attention, Sequence) and set(attention) <= set(grids),
        f"attention={attention!r} must be a sequence of grid sizes; this network "
        f"has {grids}",
    )
    return grids
