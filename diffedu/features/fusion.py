"""A small transformer that reads the features of several blocks as one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu

from diffedu.errors import require
from diffedu.features.learners import draw_weights
from diffedu.nets.attention import Attend


def token_sets(x: Mapping[str, Tensor] | Sequence[Tensor], grid: int) -> list[Tensor]:
    """Each block's features as tokens (N, tokens, C).

    Args:
        x: a dict or sequence of features, each (N, C, H, W), (N, tokens, C) or (N, C).
        grid: the most tokens a side that an image keeps, each the mean over its cell.

    Raises:
        TypeError: if x is one tensor.
        ValueError: if there is none, or their lengths differ.
    """
    require(
        not isinstance(x, Tensor),
        "x must be a dict or a sequence of features, one a block; got one tensor: "
        "give [x]",
        TypeError,
    )
    parts = list(x.values()) if isinstance(x, Mapping) else list(x)
    sizes = {len(part) for part in parts}
    require(
        len(sizes) == 1,
        f"the blocks have {sorted(sizes)} rows; give one or more of one length",
    )
    return [_tokens(part, grid) for part in parts]


def _tokens(h: Tensor, grid: int) -> Tensor:
    if h.dim() == 4:
        cells = [min(grid, side) for side in h.shape[2:]]
        return adaptive_avg_pool2d(h, cells).flatten(2).transpose(1, 2)
    return h[:, None] if h.dim() == 2 else h


class Fusion(nn.Module):
    """A learned query that looks at the tokens of several blocks, then a classifier.

    Args:
        sizes: (tokens, C) of each block.
        width: of a token inside, a multiple of `heads`.
        classes: number of answers.
        layers: transformer layers.
        heads: of attention.
        generator: draws the weights.

    Raises:
        ValueError: if the width cannot be divided among the heads.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        width: int,
        classes: int,
        layers: int,
        heads: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        require(
            width % heads == 0, f"{width} channels don't divide among {heads} heads"
        )
        self.enter = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(c), nn.Linear(c, width)) for _, c in sizes
        )
        self.places = nn.ParameterList(_small(generator, n, width) for n, _ in sizes)
        self.query = nn.Parameter(_small(generator, 1, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        draw_weights(self, generator)

    def forward(self, sets: Sequence[Tensor]) -> Tensor:
        """Class scores (B, C) of tokens, each block (B, tokens, C)."""
        parts = [
            enter(tokens.to(place)) + place
            for enter, tokens, place in zip(self.enter, sets, self.places, strict=True)
        ]
        h = torch.cat([self.query.expand(len(parts[0]), 1, -1), *parts], 1)
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h[:, 0]))


class Layer(nn.Module):
    """One layer of a transformer, normalised before each part.

    Args:
        width: of a token.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attend = Attend()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Map tokens (B, N, width) to the same shape."""
        split = self.qkv(self.before(h)).unflatten(2, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        h = h + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return h + self.down(gelu(self.up(self.between(h))))


def _small(generator: torch.Generator, *shape: int) -> Tensor:
    return 0.02 * torch.randn(shape, generator=generator)
