"""Checks of chapter 11b's exercises: PCK, matching, mixing and fusing features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffedu.checks.ch11b_editing import inject_words
from diffedu.checks.machinery import Exercise, Property

__all__ = ["fuse", "inject_words", "match", "mix", "pck"]

MIRROR = torch.tensor([[0, 1, 2, 3, 4], [0, 2, 1, 4, 3]])


def _size(low: int, high: int, dice: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=dice))


def _points_inputs(dice: torch.Generator) -> dict[str, object]:
    n = _size(6, 9, dice)
    truth = 1.6 * torch.rand(n, 5, 2, generator=dice) - 0.8
    mirrored = torch.rand(n, 1, 1, generator=dice) < 0.5
    aim = torch.where(mirrored, truth[:, MIRROR[1]], truth)
    # errors on both sides of each candidate's radius, never close to one
    far = torch.rand(n, 5, 1, generator=dice)
    length = torch.tensor([0.03, 0.1, 0.15, 0.4])[(4 * far).long()]
    turn = 6.28 * torch.rand(n, 5, 1, generator=dice)
    found = aim + length * torch.cat([turn.cos(), turn.sin()], -1)
    asked, visible = torch.rand(2, n, 5, generator=dice) < 0.75
    asked[:, 0] = visible[:, 0] = True
    return {"found": found, "truth": truth, "asked": asked, "visible": visible,
            "names": MIRROR, "share": 0.06}  # fmt: skip


def _score(
    found: Tensor,
    truth: Tensor,
    asked: Tensor,
    visible: Tensor,
    names: Tensor,
    share: float,
    width: float = 2.0,
    joined: str = "both",
    best: str = "pair",
    distance: float = 2.0,
    moved: bool = True,
    squared: bool = False,
) -> Tensor:
    near = torch.linalg.vector_norm(
        found[:, None] - truth[:, names], ord=distance, dim=-1
    )
    hits = (near.square() if squared else near) <= share * width
    seen = visible[:, names] if moved else visible[:, None].expand(-1, len(names), -1)
    asked = asked[:, None].expand_as(seen)
    counted = {
        "both": asked & seen,
        "asked": asked,
        "seen": seen,
        "or": asked | seen,
        "all": torch.ones_like(seen),
    }[joined]
    hits = hits & counted
    if best == "point":
        one = asked[:, 0] & visible
        return (hits.any(1) & one).sum(1) / one.sum(1)
    if best == "apart":
        return hits.sum(2).amax(1) / counted.sum(2).amax(1).clamp(min=1)
    if best == "none":
        return (hits.sum(2) / counted.sum(2).clamp(min=1))[:, 0]
    if best == "mean":
        return (hits.sum(2) / counted.sum(2).clamp(min=1)).mean(1)
    total = counted.shape[2] if best == "of all" else counted.sum(2).clamp(min=1)
    return (hits.sum(2) / total).amax(1)


pck = Exercise(
    "pck",
    draw=_points_inputs,
    truth=_score,
    mistakes={
        "the image is 2 wide in these units, and the share is taken of 1": lambda *a: (
            _score(*a, width=1.0)
        ),
        "the symmetries are not used": lambda *a: _score(*a, best="none"),
        "each point chooses a symmetry of its own; a pair has one": lambda *a: _score(
            *a, best="point"
        ),
        "the mean over symmetries is taken; the best one counts": lambda *a: _score(
            *a, best="mean"
        ),
        "hits and points that count are maximised apart; one renaming serves both": (
            lambda *a: _score(*a, best="apart")
        ),
        "the root of the squared distance is missing": lambda *a: _score(
            *a, squared=True
        ),
        "hidden points count as well": lambda *a: _score(*a, joined="all"),
        "points hidden in the target count": lambda *a: _score(*a, joined="asked"),
        "points hidden in the source count": lambda *a: _score(*a, joined="seen"),
        "a point counts if it is seen in one of the images; both are needed": (
            lambda *a: _score(*a, joined="or")
        ),
        "it is divided by all points, not by those that count": lambda *a: _score(
            *a, best="of all"
        ),
        "the target's visibility keeps the old names while the points are renamed": (
            lambda *a: _score(*a, moved=False)
        ),
        "the larger of the two coordinates' errors is taken for the distance": (
            lambda *a: _score(*a, distance=float("inf"))
        ),
        "the two coordinates' errors are added: that is not the distance": (
            lambda *a: _score(*a, distance=1.0)
        ),
        "all pairs are averaged into one number": lambda *a: _score(*a).mean(),
        "the points that were missed are counted": lambda *a: 1 - _score(*a),
    },
)


def _maps_inputs(dice: torch.Generator) -> dict[str, object]:
    n, c, k = (_size(2, 4, dice) for _ in range(3))
    h, w = 7, 10
    # features lie around a common vector, as those of a network do
    common = 2.0 * torch.randn(1, 2 + c, 1, 1, generator=dice)
    source, target = common + torch.randn(2, n, 2 + c, h, w, generator=dice)
    target = target * (0.3 + 3 * torch.rand(n, 1, h, w, generator=dice))
    points = 1.9 * torch.rand(n, 1 + k, 2, generator=dice) - 0.95
    return {"source": source, "target": target, "points": points}


def _read(maps: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    at = points[:, :, None].to(maps.dtype)
    read = F.grid_sample(
        maps, at, mode=mode, padding_mode="border", align_corners=False
    )
    return read[..., 0].transpose(1, 2)


def _best(
    source: Tensor,
    target: Tensor,
    points: Tensor,
    sign: float = 1.0,
    lengths: str = "channels",
    order: str = "xy",
    corners: bool = False,
    corners_out: bool = False,
    shift: float = 0.5,
    width_for_both: bool = False,
    mode: str = "bilinear",
) -> Tensor:
    places = points.flip(-1) if order == "yx in" else points
    if corners:
        at = places[:, :, None].to(source.dtype)
        asked = F.grid_sample(source, at, padding_mode="border", align_corners=True)
        asked = asked[..., 0].transpose(1, 2)
    else:
        asked = _read(source, places, mode)
    if lengths == "channels":
        target = target / target.norm(dim=1, keepdim=True)
    if lengths == "places":
        target = target / target.flatten(2).norm(dim=2)[..., None, None]
    if lengths == "distance":
        gap = asked[..., None, None] - target[:, None]
        scores = -gap.square().sum(2)
    else:
        scores = torch.einsum("nkc,nchw->nkhw", asked, target)
    h, w = target.shape[2:]
    best = (sign * scores).flatten(2).argmax(2)
    column, row = best % w, best // w
    if order == "h":
        column, row = best % h, best // h
    tall = w if width_for_both else h
    x, y = 2 * (column + shift) / w - 1, 2 * (row + shift) / tall - 1
    if corners_out:
        x, y = 2 * column / (w - 1) - 1, 2 * row / (h - 1) - 1
    pair = [y, x] if order == "yx out" else [x, y]
    return torch.stack(pair, -1).to(source.dtype)


match = Exercise(
    "match",
    draw=_maps_inputs,
    truth=_best,
    mistakes={
        "x and y are exchanged in the result: a column is an x": lambda *a: _best(
            *a, order="yx out"
        ),
        "x and y are exchanged where the source is read": lambda *a: _best(
            *a, order="yx in"
        ),
        "a pixel's edge is taken for its centre, half a pixel away": lambda *a: _best(
            *a, shift=0.0
        ),
        "the corners' pixels are put at -1 and 1: align_corners is False here": (
            lambda *a: _best(*a, corners=True, corners_out=True)
        ),
        "the source is read with align_corners=True; it is False here": (
            lambda *a: _best(*a, corners=True)
        ),
        "the last pixel's centre is put at 1; a centre is half a pixel inside": (
            lambda *a: _best(*a, corners_out=True)
        ),
        "the target's vectors are not scaled to length 1": lambda *a: _best(
            *a, lengths="none"
        ),
        "the length is taken over places; a vector's length is over channels": (
            lambda *a: _best(*a, lengths="places")
        ),
        "the distance is used; a cosine ignores how long a vector is": lambda *a: _best(
            *a, lengths="distance"
        ),
        "the least similar place is taken": lambda *a: _best(*a, sign=-1.0),
        "the flat index is split by the height; rows are as long as the width": (
            lambda *a: _best(*a, order="h")
        ),
        "one side's length serves for both": lambda *a: _best(*a, width_for_both=True),
        "the source is read at its nearest pixel, not between pixels": lambda *a: _best(
            *a, mode="nearest"
        ),
        "places of the source are returned: the points as they were given": (
            lambda source, target, points: points
        ),
    },
)


def _cells_inputs(dice: torch.Generator) -> dict[str, object]:
    blocks, times, n = _size(2, 4, dice), _size(2, 4, dice), _size(2, 3, dice)
    times += times == blocks  # so that the two axes cannot be taken for each other
    width = _size(3, 5, dice)
    channels = [2 + i + _size(0, 1, dice) for i in range(blocks)]
    cells = [1 + torch.randn(times, n, c, 4, 4, generator=dice) for c in channels]
    shrink = [torch.randn(width, c, generator=dice) for c in channels]
    return {"cells": cells, "shrink": shrink,
            "scores": 1.5 * torch.randn(blocks, times, generator=dice)}  # fmt: skip


def _shares(scores: Tensor) -> Tensor:
    return scores.flatten().softmax(0).view_as(scores)


def _mix(cells, shrink, scores, shares=_shares) -> Tensor:
    total = 0.0
    for row, block, each in zip(shares(scores), shrink, cells, strict=True):
        total = total + torch.einsum("s,dc,snchw->ndhw", row, block, each)
    return total


def _mix_then_max(cells, shrink, scores) -> Tensor:
    parts = [
        torch.einsum("dc,nchw->ndhw", shrink[i], cells[i][s]) * share
        for i, row in enumerate(_shares(scores))
        for s, share in enumerate(row)
    ]
    return torch.stack(parts).amax(0)


def _last_block(cells, shrink, scores) -> Tensor:
    return torch.einsum("s,dc,snchw->ndhw", _shares(scores)[-1], shrink[-1], cells[-1])


def _learns(f, dice: torch.Generator) -> bool:
    given = _cells_inputs(dice)
    scores = given["scores"].requires_grad_()
    result = f(given["cells"], given["shrink"], scores)
    if not result.requires_grad:
        return False
    (slope,) = torch.autograd.grad(result.square().sum(), scores, allow_unused=True)
    return slope is not None and bool((slope != 0).all())


mix = Exercise(
    "mix",
    draw=_cells_inputs,
    truth=_mix,
    mistakes={
        "the scores themselves are the weights; their softmax should be": lambda *a: (
            _mix(*a, shares=lambda v: v)
        ),
        "each block's weights sum to 1; all together should": lambda *a: _mix(
            *a, shares=lambda v: v.softmax(1)
        ),
        "each time's weights sum to 1; all together should": lambda *a: _mix(
            *a, shares=lambda v: v.softmax(0)
        ),
        "all cells count alike": lambda *a: _mix(
            *a, shares=lambda v: torch.full_like(v, 1 / v.numel())
        ),
        "the weights are exp(score), not divided by their sum": lambda *a: _mix(
            *a, shares=torch.exp
        ),
        "sigmoids do not sum to 1": lambda *a: _mix(*a, shares=torch.sigmoid),
        "the mean over cells is taken where a sum belongs": lambda cells, shrink, v: (
            _mix(cells, shrink, v) / v.numel()
        ),
        "the order of the times is reversed": lambda cells, shrink, v: _mix(
            cells, shrink, v.flip(1)
        ),
        "the largest cell is taken at each place; they should be added": _mix_then_max,
        "only one block is in the result: is the sum overwritten in the loop?": (
            _last_block
        ),
    },
    properties=(
        Property("the scores get no gradient, so that they cannot be learned", _learns),
    ),
)


def _two_maps(dice: torch.Generator) -> dict[str, object]:
    n = _size(2, 4, dice)
    c = _size(3, 5, dice)
    d = c + _size(1, 3, dice)
    a = 0.2 * torch.randn(n, c, 8, 8, generator=dice) + 0.1
    b = 5 * torch.randn(n, d, 4, 4, generator=dice) + 2
    return {"a": a, "b": b, "alpha": 0.1 + 0.3 * torch.rand((), generator=dice).item()}


def _large(b: Tensor, a: Tensor, mode: str = "bilinear") -> Tensor:
    return F.interpolate(b, size=a.shape[2:], mode=mode)


def _unit(m: Tensor) -> Tensor:
    return m / m.norm(dim=1, keepdim=True)


def _fuse(a, b, alpha, unit=_unit, mode="bilinear", last=lambda m: m, order=1):
    b = _large(b, a, mode)
    return last(torch.cat([alpha * unit(a), (1 - alpha) * unit(b)][::order], 1))


def _whole(m: Tensor) -> Tensor:
    return m / m.flatten(1).norm(dim=1)[:, None, None, None]


def _over_places(m: Tensor) -> Tensor:
    return m / m.flatten(2).norm(dim=2)[..., None, None]


fuse = Exercise(
    "fuse",
    draw=_two_maps,
    truth=_fuse,
    mistakes={
        "the vectors are not scaled to length 1, so the larger map wins": lambda *a: (
            _fuse(*a, unit=lambda m: m)
        ),
        "each image is scaled as a whole; each place's vector should be": lambda *a: (
            _fuse(*a, unit=_whole)
        ),
        "the length is taken over places; a vector's length is over channels": (
            lambda *a: _fuse(*a, unit=_over_places)
        ),
        "alpha and 1 - alpha are exchanged": lambda a, b, alpha: _fuse(a, b, 1 - alpha),
        "the weight is not used": lambda a, b, alpha: 2 * _fuse(a, b, 0.5),
        "b is not weighted by 1 - alpha": lambda a, b, alpha: torch.cat(
            [alpha * _unit(a), _unit(_large(b, a))], 1
        ),
        "the square roots of the weights are used": lambda a, b, alpha: torch.cat(
            [alpha**0.5 * _unit(a), (1 - alpha) ** 0.5 * _unit(_large(b, a))], 1
        ),
        "the two maps are in the other order": lambda *a: _fuse(*a, order=-1),
        "b is enlarged by repeating pixels, not bilinearly": lambda *a: _fuse(
            *a, mode="nearest"
        ),
        "the joined vectors are scaled once more": lambda *a: _fuse(*a, last=_unit),
        "the joined vectors are scaled, each map was not": lambda *a: _fuse(
            *a, unit=lambda m: m, last=_unit
        ),
        "b is scaled before it is enlarged, and no longer of length 1 after": (
            lambda a, b, alpha: torch.cat(
                [alpha * _unit(a), (1 - alpha) * _large(_unit(b), a)], 1
            )
        ),
        "a is brought to b's grid; b should be brought to a's": (
            lambda a, b, alpha: torch.cat(
                [alpha * _unit(_large(a, b)), (1 - alpha) * _unit(b)], 1
            )
        ),
    },
)
