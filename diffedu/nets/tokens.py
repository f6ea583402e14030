"""Images as rows of tokens: patches, their fixed places, and attention among them.

A patch of p x p pixels becomes one vector; the number of vectors is what a
transformer pays for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.nets.attention import Attend
from diffedu.nets.conditions import require_positive

Mixer = Callable[[int], nn.Module]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images into patches, row by row.

    Args:
        x: shape (B, C, H, W).
        patch: side of a patch in pixels, divides H and W.

    Returns:
        shape (B, N, C patch^2), N = H W / patch^2; a token lists its channels, each
        row by row.

    Raises:
        ValueError: if the patch does not divide the image.
    """
    require_positive(patch=patch)
    height, width = x.shape[-2:]
    require(
        height % patch == 0 and width % patch == 0,
        f"an image of {height} x {width} pixels cannot be cut into patches of {patch}",
    )
    cut = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, p)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Put patches together again: the inverse of `patchify` for square images.

    Args:
        tokens: shape (B, N, channels patch^2), N a square number.
        patch: side of a patch in pixels.
        channels: channels of the image.

    Returns:
        shape (B, channels, side, side), side = patch sqrt(N).

    Raises:
        ValueError: if the tokens do not make a square image of that kind.
    """
    grid = round(tokens.shape[1] ** 0.5)
    require(
        grid**2 == tokens.shape[1] and tokens.shape[2] == channels * patch**2,
        f"tokens of shape {tuple(tokens.shape)} make no square image of {channels} "
        f"channels with patches of {patch}",
    )
    cut = tokens.unflatten(2, (channels, patch, patch)).unflatten(1, (grid, grid))
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def grid_positions(grid: int, width: int) -> Tensor:
    """Fixed places of the patches: sines and cosines of the row and the column.

    Half of the features tell the row, half the column, at wavelengths that rise from
    2 pi to 2 pi 10,000 patches (1706.03762, section 3.5, in two dimensions).

    Args:
        grid: patches a side.
        width: number of features, a multiple of 4.

    Returns:
        shape (grid^2, width), row by row.

    Raises:
        ValueError: if the width is no multiple of 4.
    """
    require_positive(grid=grid, width=width)
    require(width % 4 == 0, f"width {width} must be a multiple of 4 to hold places")
    quarter = width // 4
    speeds = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    rows = line[:, None].expand(-1, grid, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).flatten(0, 1).float()


class TokenAttention(nn.Module):
    """Every token looks at every other one; the product itself is `attend`.

    Args:
        width: features of a token, a multiple of `heads`.
        heads: number of attention heads.
        window: None, or the length of the runs of tokens that see each other. The
            number of tokens must be a multiple of it.

    Raises:
        ValueError: if the width cannot be divided among the heads.
    """

    def __init__(self, width: int, heads: int = 4, window: int | None = None) -> None:
        super().__init__()
        require_positive(width=width, heads=heads)
        require(
            width % heads == 0, f"width {width} cannot be divided among {heads} heads"
        )
        if window is not None:
            require_positive(window=window)
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.attend = Attend()
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, width) to the same shape; ValueError if a window does not fit."""
        if self.window is not None and self.window != tokens.shape[1]:
            return self._by_windows(tokens)
        split = self.qkv(tokens).unflatten(2, (3, self.heads, -1))
        q, k, v = split.transpose(1, 3).unbind(2)  # each (B, heads, N, d)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def _by_windows(self, tokens: Tensor) -> Tensor:
        n, window = tokens.shape[1], self.window
        require(n % window == 0, f"{n} tokens cannot be cut into windows of {window}")
        apart = tokens.unflatten(1, (-1, window)).flatten(0, 1)
        return self(apart).unflatten(0, (len(tokens), -1)).flatten(1, 2)


def feed_forward(width: int, ratio: int = 4) -> nn.Sequential:
    """The two-layer network of a transformer block, (..., width) to the same."""
    hidden = ratio * width
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Linear(hidden, width),
    )
