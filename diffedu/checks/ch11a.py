"""Checks of chapter 11a's exercises: mIoU, votes, hypercolumns, a step of k-means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from diffedu.checks.ch03_fields import whole
from diffedu.checks.machinery import Exercise

__all__ = ["hypercolumn", "kmeans_step", "mean_iou", "vote_and_average"]

Inputs = dict[str, Any]


# mIoU of a confusion matrix


def _tables(g: Generator) -> Inputs:
    """One class that neither has, and one that is predicted and never true."""
    k = whole(5, 8, g)
    table = torch.randint(1, 40, (k, k), generator=g).float()
    table += torch.diag(torch.randint(5, 90, (k,), generator=g)).float()
    absent, invented = torch.randperm(k, generator=g)[:2]
    table[absent], table[:, absent], table[invented] = 0, 0, 0
    return {"confusion": table}


def _parts(C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return C.diagonal(), C.sum(1), C.sum(0)


def _iou(C: Tensor) -> Tensor:
    hits, true, said = _parts(C)
    return hits / (true + said - hits)


def _ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """0/0 is NaN, and NaN is left out of the mean."""
    return (top / bottom).nanmean()


mean_iou = Exercise(
    "mean_iou",
    draw=_tables,
    truth=lambda C: _iou(C).nanmean(),
    mistakes={
        "the accuracy: hits of all classes over all pixels":
            lambda C: C.trace() / C.sum(),
        "all intersections together over all unions together":
            lambda C: C.trace() / (2 * C.sum() - C.trace()),
        "the union counts the intersection twice":
            lambda C: _ratio(C.diagonal(), C.sum(0) + C.sum(1)),
        "Dice's score, twice the hits over both sizes":
            lambda C: _ratio(2 * C.diagonal(), C.sum(0) + C.sum(1)),
        "each class's recall, hits over what is true":
            lambda C: _ratio(C.diagonal(), C.sum(1)),
        "each class's precision, hits over what was said":
            lambda C: _ratio(C.diagonal(), C.sum(0)),
        "a class that neither has counts as 0":
            lambda C: _iou(C).nan_to_num(0).mean(),
        "a class that neither has counts as 1":
            lambda C: _iou(C).nan_to_num(1).mean(),
        "a class that was said and is never true is left out; it counts as 0":
            lambda C: _iou(C)[C.sum(1) > 0].mean(),
        "classes are weighted by how frequent they are":
            lambda C: (_iou(C).nan_to_num(0) * C.sum(1)).sum() / C.sum(),
        "0/0 spoils the mean: leave out the class that neither has":
            lambda C: _iou(C).mean(),
        "the first class is left out; background is a class like the others":
            lambda C: _iou(C)[1:].nanmean(),
        "the union is all pixels, where only those of this class belong to it":
            lambda C: (C.diagonal() / C.sum()).mean(),
        "the union lacks its brackets, so that only the row's sum divides":
            lambda C: (C.diagonal() / C.sum(1) + C.sum(0) - C.diagonal()).nanmean(),
    },
)  # fmt: skip


# Vote and average


def _opinions(g: Generator) -> Inputs:
    """Members that differ in how sure they are, so that votes and means differ."""
    m, n, k = whole(3, 6, g) * 2, 60, whole(3, 6, g)
    sure = 0.3 + 4 * torch.rand(m, 1, 1, generator=g)
    return {"logits": sure * torch.randn(m, n, k, generator=g)}


def _ballots(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)


def _vote(logits: Tensor, ties: str = "mean") -> Tensor:
    ballots = _ballots(logits).to(logits.dtype)
    second = {
        "mean": logits.softmax(-1).mean(0),
        "lowest": -torch.linspace(0, 0.9, logits.shape[-1], dtype=logits.dtype),
        "highest": torch.linspace(0, 0.9, logits.shape[-1], dtype=logits.dtype),
    }[ties]
    return (ballots + second / 2).argmax(-1)


def _mean(logits: Tensor) -> Tensor:
    return logits.softmax(-1).mean(0).argmax(-1)


def _weighted(logits: Tensor) -> Tensor:
    first = F.one_hot(logits.argmax(-1), logits.shape[-1])
    return (logits.softmax(-1) * first).sum(0).argmax(-1)


def _surest(logits: Tensor) -> Tensor:
    return logits.softmax(-1).amax(0).argmax(-1)


vote_and_average = Exercise(
    "vote_and_average",
    draw=_opinions,
    truth=lambda logits: (_vote(logits), _mean(logits)),
    returns=("vote", "average"),
    mistakes={
        "the two answers are exchanged":
            lambda z: (_mean(z), _vote(z)),
        "the average is taken over logits, where probabilities are averaged":
            lambda z: (_vote(z), z.mean(0).argmax(-1)),
        "the vote is the class of the highest mean logit; it counts first choices":
            lambda z: (z.mean(0).argmax(-1), _mean(z)),
        "votes are weighted by how sure each member is; each counts one":
            lambda z: (_weighted(z), _mean(z)),
        "softmax is taken over the pixels, not over the classes":
            lambda z: (_vote(z), z.softmax(1).mean(0).argmax(-1)),
        "both answers are the vote":
            lambda z: (_vote(z), _vote(z)),
        "both answers are the average; a vote counts each member's first choice":
            lambda z: (_mean(z), _mean(z)),
        "a tie goes to the lowest class":
            lambda z: (_vote(z, "lowest"), _mean(z)),
        "a tie goes to the highest class":
            lambda z: (_vote(z, "highest"), _mean(z)),
        "the surest member alone decides the average":
            lambda z: (_vote(z), _surest(z)),
        "the first member alone decides":
            lambda z: (z[0].argmax(-1), z[0].argmax(-1)),
    },
)  # fmt: skip


# Hypercolumns


def _states(g: Generator) -> Inputs:
    b, grids = whole(2, 4, g), (2, 4, 8)
    states = [torch.randn(b, whole(2, 5, g), n, n, generator=g) for n in grids]
    return {"states": states, "size": 16}


def _stack(states: list, size: int, corners: bool = False) -> Tensor:
    up = [
        F.interpolate(h, (size, size), mode="bilinear", align_corners=corners)
        for h in states
    ]
    return torch.cat(up, 1)


def _uncentred(states: list, size: int) -> Tensor:
    """Linear interpolation with pixel q at q n / size: the halves are forgotten."""
    found = []
    for h in states:
        n = h.shape[-1]
        place = torch.arange(size, dtype=h.dtype) * n / size
        low = place.floor().long()
        high, share = (low + 1).clamp(max=n - 1), place - low
        h = torch.lerp(h[..., low], h[..., high], share)
        found.append(torch.lerp(h[..., low, :], h[..., high, :], share[:, None]))
    return torch.cat(found, 1)


def _doubled(states: list, size: int) -> Tensor:
    """Doubled again and again, each time by linear interpolation."""
    found = []
    for h in states:
        while h.shape[-1] < size:
            h = F.interpolate(h, scale_factor=2, mode="bilinear")
        found.append(h)
    return torch.cat(found, 1)


def _by(states: list, size: int, mode: str) -> Tensor:
    return torch.cat([F.interpolate(h, (size, size), mode=mode) for h in states], 1)


def _spread(states: list, size: int) -> Tensor:
    """Each value at its place's first pixel, zeros between."""
    found = []
    for h in states:
        step = size // h.shape[-1]
        wide = h.new_zeros(*h.shape[:2], size, size)
        wide[..., ::step, ::step] = h
        found.append(wide)
    return torch.cat(found, 1)


hypercolumn = Exercise(
    "hypercolumn",
    draw=_states,
    truth=_stack,
    mistakes={
        "corners are laid on corners (align_corners=True), where centres belong on "
        "centres": lambda h, n: _stack(h, n, True),
        "pixel q is put at q n/size: the two halves are forgotten":
            _uncentred,
        "the grid is doubled step by step; interpolate once":
            _doubled,
        "the nearest place is copied, without interpolation":
            lambda h, n: _by(h, n, "nearest"),
        "the interpolation is cubic":
            lambda h, n: _by(h, n, "bicubic"),
        "the blocks are stacked in the other order":
            lambda h, n: _stack(h[::-1], n),
        "rows and columns are exchanged":
            lambda h, n: _stack(h, n).transpose(-1, -2),
        "only the last block is there":
            lambda h, n: _stack(h[-1:], n),
        "only the first block is there":
            lambda h, n: _stack(h[:1], n),
        "the blocks are stacked along the batch or the rows, not the channels":
            lambda h, n: torch.cat(
                [F.interpolate(each, (n, n), mode="bilinear") for each in h], 2),
        "the coarse values are set among zeros and not interpolated":
            _spread,
        "each pixel's vector is scaled to length 1":
            lambda h, n: F.normalize(_stack(h, n), dim=1),
    },
)  # fmt: skip


# One step of k-means


def _crowd(g: Generator) -> Inputs:
    """Rows around all centres but one, which is far away."""
    k, d = whole(4, 7, g), whole(2, 4, g)
    centres = 2 * torch.randn(k, d, generator=g)
    x = centres[torch.randint(k - 1, (60,), generator=g)]
    x = x + 1.5 * torch.randn(60, d, generator=g)
    centres[-1] += 50
    return {"x": x, "centres": centres}


def _labels(x: Tensor, centres: Tensor, power: int = 2) -> Tensor:
    return (x[:, None] - centres).abs().pow(power).sum(-1).argmin(1)


def _means(x: Tensor, z: Tensor, centres: Tensor, empty: str = "stay") -> Tensor:
    hot = F.one_hot(z, len(centres)).to(x.dtype)
    count = hot.sum(0)[:, None]
    mean = hot.T @ x / count.clamp(min=1)
    instead = {"stay": centres, "zero": 0 * centres, "mean": 0 * centres + x.mean(0)}
    return torch.where(count > 0, mean, instead[empty])


def _step(x: Tensor, centres: Tensor, empty: str = "stay", power: int = 2) -> tuple:
    z = _labels(x, centres, power)
    return z, _means(x, z, centres, empty)


def _sums(x: Tensor, centres: Tensor) -> Tensor:
    return F.one_hot(_labels(x, centres), len(centres)).to(x.dtype).T @ x


def _restarted(x: Tensor, centres: Tensor) -> tuple:
    z, means = _step(x, centres)
    empty = F.one_hot(z, len(centres)).sum(0) == 0
    far = (x[:, None] - centres).square().sum(-1).amin(1).argmax()
    return z, torch.where(empty[:, None], x[far], means)


def _medians(x: Tensor, centres: Tensor) -> Tensor:
    z = _labels(x, centres)
    rows = [x[z == k] for k in range(len(centres))]
    found = [r.median(0).values if len(r) else centres[k] for k, r in enumerate(rows)]
    return torch.stack(found)


def _by_product(x: Tensor, centres: Tensor) -> tuple:
    z = (x @ centres.T).argmax(1)
    return z, _means(x, z, centres)


def _by_angle(x: Tensor, centres: Tensor) -> tuple:
    z = (x @ F.normalize(centres, dim=1).T).argmax(1)
    return z, _means(x, z, centres)


def _farthest(x: Tensor, centres: Tensor) -> tuple:
    z = (x[:, None] - centres).square().sum(-1).argmax(1)
    return z, _means(x, z, centres)


kmeans_step = Exercise(
    "kmeans_step",
    draw=_crowd,
    truth=_step,
    returns=("labels", "centres"),
    mistakes={
        "a centre without rows is moved to 0; it stays":
            lambda x, c: _step(x, c, "zero"),
        "a centre without rows is moved to the mean of all; it stays":
            lambda x, c: _step(x, c, "mean"),
        "a centre without rows is moved to the row farthest from its own; it stays":
            _restarted,
        "the centres are medians, not means":
            lambda x, c: (_labels(x, c), _medians(x, c)),
        "the largest dot product decides, where the smallest distance should":
            _by_product,
        "the labels follow the angle to the centre, not the distance":
            _by_angle,
        "distances are sums of absolute values, not of squares":
            lambda x, c: _step(x, c, power=1),
        "each row goes to the farthest centre":
            _farthest,
        "the centres are sums, not means":
            lambda x, c: (_labels(x, c), _sums(x, c)),
        "the sums are divided by the number of all rows":
            lambda x, c: (_labels(x, c), _sums(x, c) / len(x)),
        "the centres have not moved":
            lambda x, c: (_labels(x, c), c),
        "the labels belong to the new centres; they are taken before the centres move":
            lambda x, c: (_labels(x, _step(x, c)[1]), _step(x, c)[1]),
        "two steps were taken":
            lambda x, c: _step(x, _step(x, c)[1]),
        "the centre goes half of the way only":
            lambda x, c: (_labels(x, c), (_step(x, c)[1] + c) / 2),
    },
)  # fmt: skip
