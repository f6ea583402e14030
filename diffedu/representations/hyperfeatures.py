"""Hyperfeatures: all blocks at all times in one map, with weights learned from pairs.

Where DIFT chooses one cell of the grid of blocks and times, a few labelled pairs tell
how much each cell should count.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffedu.errors import require, require_finite
from diffedu.representations.correspondence import enlarge, similarity
from diffedu.representations.keypoints import Pairs
from diffedu.training import fit


class Hyperfeatures(nn.Module):
    """A learned sum of bottlenecked features over blocks and times.

    Every block has one bottleneck for all its times; every cell has a weight, and the
    weights are a softmax, so that they are shares.

    Args:
        channels: for each block its number of channels.
        times: how many times.
        width: channels of the sum.
        grid: pixels a side of the sum.

    Raises:
        ValueError: if there is no block, or a number is below 1.

    Source: sum_s sum_l w_{l,s} B_l(r_{l,s}) (arXiv 2305.14334; survey 2407.00783,
    eq. 14). The paper's B_l is a residual block; ours is one linear map.
    """

    def __init__(
        self, channels: Mapping[str, int], times: int, width: int = 24, grid: int = 16
    ) -> None:
        super().__init__()
        require(
            len(channels) > 0 and min(times, width, grid, *channels.values()) >= 1,
            "Hyperfeatures need a block, and all numbers 1 or more",
        )
        self.names, self.times, self.grid = tuple(channels), times, grid
        self.bottleneck = nn.ModuleList(
            nn.Conv2d(c, width, 1, bias=False) for c in channels.values()
        )
        self.scores = nn.Parameter(torch.zeros(len(channels), times))

    def weights(self) -> Tensor:
        """The share of each block and time, (blocks, times); they sum to 1."""
        return F.softmax(self.scores.flatten(), 0).view_as(self.scores)

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Mix feature maps.

        Args:
            maps: for each block its maps at all times, (times, N, C, h, w).

        Returns:
            shape (N, width, grid, grid).

        Raises:
            ValueError: if a block is missing or has another number of times.
        """
        missing = [name for name in self.names if name not in maps]
        require(not missing, f"maps lack {missing}; they have {list(maps)}")
        total = 0.0
        for name, shrink, row in zip(
            self.names, self.bottleneck, self.weights(), strict=True
        ):
            cells = maps[name]
            require(
                cells.dim() == 5 and len(cells) == self.times,
                f"{name} must be ({self.times}, N, C, h, w), got {tuple(cells.shape)}",
            )
            # a linear bottleneck may be applied after the sum over its times
            summed = torch.einsum("s,snchw->nchw", row, cells)
            total = total + enlarge(shrink(summed), self.grid)
        return total


def matching_loss(
    scores: Tensor,
    truth: Tensor,
    symmetry: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Cross-entropy of finding each point among all places of the target, in nats.

    Args:
        scores: cosines of each point with each place, (N, K, h, w).
        truth: where the points are, (N, K, 2) in [-1, 1].
        symmetry: allowed renamings, (N, G, K) int64: the best of them counts.
        temperature: what the cosines are divided by, above 0.

    Returns:
        shape (), the mean over points and pairs.

    Raises:
        ValueError: if shapes do not fit, or the temperature is not above 0.
    """
    n, k, height, width = scores.shape
    require(
        truth.shape == (n, k, 2),
        f"truth must have shape {(n, k, 2)}, got {tuple(truth.shape)}",
    )
    require(temperature > 0, f"temperature is {temperature}; it must be above 0")
    require_finite(truth, "truth")
    column = ((truth[..., 0] + 1) / 2 * width).long().clamp(0, width - 1)
    row = ((truth[..., 1] + 1) / 2 * height).long().clamp(0, height - 1)
    answer = row * width + column  # (N, K)
    log_p = F.log_softmax(scores.flatten(2) / temperature, 2)
    if symmetry is None:
        symmetry = torch.arange(k, device=scores.device).expand(n, 1, k)
    pairs = torch.arange(n, device=scores.device)[:, None, None]
    named = answer[pairs, symmetry]  # (N, G, K): where each point goes under each
    points = torch.arange(k, device=scores.device)
    return -log_p[pairs, points, named].mean(2).amax(1).mean()


def learn(
    maps: Mapping[str, Tensor],
    pairs: Pairs,
    *,
    steps: int = 100,
    batch: int = 16,
    lr: float = 1e-2,
    width: int = 24,
    grid: int = 16,
    generator: torch.Generator | None = None,
) -> Hyperfeatures:
    """Fit bottlenecks and weights to labelled pairs.

    Args:
        maps: for each block its maps of `pairs.both`, (times, 2 N, C, h, w).
        pairs: the N pairs.
        steps: number of steps.
        batch: pairs a step.
        lr: the highest learning rate.
        width: channels of the mix.
        grid: pixels a side of the mix.
        generator: source of the first weights and of the batches.

    Returns:
        the trained Hyperfeatures, in evaluation mode.

    Raises:
        ValueError: if the maps are not those of the pairs.
    """
    n = len(pairs)
    first = next(iter(maps.values()))
    require(
        first.shape[1] == 2 * n,
        f"maps of {first.shape[1]} images do not belong to {n} pairs; extract them "
        "from pairs.both",
    )
    channels = {name: m.shape[2] for name, m in maps.items()}
    mix = Hyperfeatures(channels, len(first), width, grid)
    for each in mix.bottleneck:
        bound = each.in_channels**-0.5
        nn.init.uniform_(each.weight, -bound, bound, generator=generator)

    def loss(rows: Tensor, dice: torch.Generator) -> Tensor:
        chosen = pairs[rows]
        shown = {name: m[:, torch.cat([rows, rows + n])] for name, m in maps.items()}
        a, b = mix(shown).chunk(2)
        there = similarity(a, b, chosen.points)
        back = similarity(b, a, chosen.truth)
        return 0.5 * (
            matching_loss(there, chosen.truth, chosen.symmetry)
            + matching_loss(back, chosen.points, chosen.symmetry)
        )

    rows = [torch.randperm(n, generator=generator)[:batch] for _ in range(steps)]
    for _ in fit(mix, loss, lambda step: rows[step], steps=steps, lr=lr, ema=None,
                 generator=generator, progress=False):  # fmt: skip
        pass
    return mix.eval()
