"""Reading a map of numbers off a captioned denoiser: VPD's three factors.

p(y | x, S) = p(y | F) p(F | x, C) p(C | S) (arXiv 2407.00783, eq. 15): an adapter
makes the condition C of the words S, the frozen denoiser makes features F of the image
x and of C, and a light head makes the map y of F.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require
from diffedu.features import edit, record
from diffedu.features.hooks import names_of
from diffedu.representations.looking import on_grid, watching
from diffedu.representations.segmentation import upsample

WORDS = "condition.words.token"  # where captions become vectors


class TextAdapter(nn.Module):
    """A small network that bends word vectors towards a task: e + gamma MLP(e).

    It starts as almost the identity, as gamma is 1e-4.

    Args:
        width: length of a word vector.
        hidden: width of the hidden layer.

    Source: (arXiv 2303.02153, section 3.2).
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        require(width >= 1 and hidden >= 1, "width and hidden must be 1 or more")
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)
        )
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, words: Tensor) -> Tensor:
        """Map word vectors (B, L, width) to the same shape."""
        return words + self.gamma * self.mlp(words)


class PyramidHead(nn.Module):
    """A light head: every grid is thinned, the coarse ones are added to the finer.

    Args:
        channels: channels of each feature map, from the coarsest grid to the finest.
        size: pixels a side of the answer.
        width: channels it works with.

    Raises:
        ValueError: if there is no map, or a number is below 1.
    """

    def __init__(self, channels: Sequence[int], size: int, width: int = 24) -> None:
        super().__init__()
        require(len(channels) > 0, "a head needs at least one feature map")
        require(min(*channels, size, width) >= 1, "all numbers must be 1 or more")
        self.size = size
        self.thin = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.last = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w), coarsest first, to an answer (B, size, size)."""
        h = self.thin[0](maps[0])
        for thin, finer in zip(self.thin[1:], maps[1:], strict=True):
            h = upsample(h, finer.shape[-1]) + thin(finer)
        return self.last(upsample(h, self.size))[:, 0]


class DepthReader(nn.Module):
    """VPD around a frozen denoiser: adapter, features with word maps, head.

    Args:
        denoise: a Denoiser of a network that reads captions; it is not trained.
        head: maps `pyramid`'s answer to (B, s, s).
        blocks: names of the blocks whose outputs are read.
        adapter: changes the word vectors; None leaves them.
        maps: whether the head sees the cross-attention's maps too.
        t: the time told to the network; the image is shown without noise.

    Raises:
        ValueError: if the network reads no captions, or no block is named.
    """

    def __init__(
        self,
        denoise: nn.Module,
        head: nn.Module,
        blocks: Sequence[str] = ("up.0", "up.1", "up.2", "up.3"),
        adapter: nn.Module | None = None,
        maps: bool = True,
        t: float = 0.02,
    ) -> None:
        super().__init__()
        self.head, self.adapter = head, adapter
        self.blocks, self.maps, self.t = names_of(blocks), maps, t
        with watching(denoise):  # raises, if there is nothing to watch
            pass
        self._frozen = [denoise]  # in a list: no part of what is trained or saved

    def pyramid(self, x0: Tensor, caption: Tensor) -> list[Tensor]:
        """Features of images (B, C, s, s) and captions (B, L), coarsest grid first.

        One map (B, D, h, w) for each grid size: the blocks' channels, then the words'.
        Gradients reach the adapter, if there is one.
        """
        (denoise,) = self._frozen
        x_t = denoise.schedule.add_noise(x0, self.t, torch.zeros_like(x0))
        adapt = {} if self.adapter is None else {WORDS: lambda w: self.adapter(w)}
        with torch.set_grad_enabled(self._learns()), record(denoise, self.blocks) as h:
            with edit(denoise, adapt), watching(denoise) as seen:
                denoise(x_t, self.t, caption=caption)
        found = list(h.values()) + [on_grid(w) for w in seen.values()] * self.maps
        sizes = sorted({each.shape[-1] for each in found})
        return [torch.cat([m for m in found if m.shape[-1] == s], 1) for s in sizes]

    def forward(self, x0: Tensor, caption: Tensor) -> Tensor:
        """The map (B, s, s) of images (B, C, s, s) with captions (B, L)."""
        return self.head(self.pyramid(x0, caption))

    def _learns(self) -> bool:
        return self.adapter is not None and torch.is_grad_enabled()


def root_mean_square(predicted: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Root of the mean squared error over the pixels of a mask.

    Args:
        predicted, truth: shape (B, H, W), in one unit.
        mask: shape (B, H, W) bool, which pixels count.

    Raises:
        ValueError: if no pixel counts.
    """
    require(bool(mask.any()), "the mask holds no pixel")
    return float(F.mse_loss(predicted[mask], truth[mask]).sqrt())
