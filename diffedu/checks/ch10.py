"""Checks of chapter 10's exercises: the search, extraction, and what features show.

The geometry of features is in its own module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from diffedu import features, schedules
from diffedu.checks.ch03_fields import whole
from diffedu.checks.ch10_geometry import alignment_uniformity, attend, cka
from diffedu.checks.machinery import Exercise
from diffedu.denoiser import Denoiser

__all__ = ["alignment_uniformity", "attend", "averaged", "cka", "search"]

Inputs = dict[str, Any]
Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]


# The search


def nearest_mean(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """A classifier of rows (N, D): the class whose mean is nearest."""
    classes = y.unique()
    means = torch.stack([x[y == each].mean(0) for each in classes])
    return lambda new: classes[torch.cdist(new, means).argmin(1)]


def _cells(g: Generator) -> Inputs:
    cells, width, classes = whole(4, 7, g), whole(10, 14, g), whole(3, 5, g)
    train, test = 5 * whole(11, 14, g), whole(37, 48, g)
    y = torch.arange(train + test) % classes
    y = y[torch.randperm(len(y), generator=g)]
    centres = torch.randn(classes, width, generator=g)
    loud = 1.6 + 0.4 * torch.rand(cells, 1, 1, generator=g)
    noise = torch.randn(cells, len(y), width, generator=g)
    rows = torch.randperm(len(y), generator=g)
    return {
        "cells": centres[y] + loud * noise, "y": y,
        "train": rows[:train], "test": rows[train:], "fit": nearest_mean,
    }  # fmt: skip


def _right(fit: Fit, x: Tensor, y: Tensor, rows: Tensor, asked: Tensor) -> float:
    guess = fit(x[rows], y[rows])(x[asked])
    return float((guess == y[asked]).double().mean())


def _search(
    cells: Tensor, y: Tensor, train: Tensor, test: Tensor, fit: Fit,
    fitted: str = "fit", asked: str = "held", sign: float = 1.0, refit: bool = True,
    first: bool = False,
) -> tuple[int, float]:  # fmt: skip
    fifth = len(train) // 5
    held, kept = (train[:fifth], train[fifth:]) if first else (
        train[-fifth:], train[:-fifth])  # fmt: skip
    rows = {"fit": kept, "held": held, "train": train, "test": test,
            "all": torch.cat([train, test])}  # fmt: skip
    scores = [sign * _right(fit, x, y, rows[fitted], rows[asked]) for x in cells]
    best = scores.index(max(scores))
    return best, _right(fit, cells[best], y, rows["train" if refit else "fit"], test)


def _best_of_validation(
    cells: Tensor, y: Tensor, train: Tensor, test: Tensor, fit: Fit
) -> tuple[int, float]:
    best, _ = _search(cells, y, train, test, fit)
    fifth = len(train) // 5
    return best, _right(fit, cells[best], y, train[:-fifth], train[-fifth:])


def _scored_on_train(
    cells: Tensor, y: Tensor, train: Tensor, test: Tensor, fit: Fit
) -> tuple[int, float]:
    best, _ = _search(cells, y, train, test, fit)
    return best, _right(fit, cells[best], y, train, train)


search = Exercise(
    "search",
    draw=_cells,
    truth=_search,
    returns=("the chosen cell", "its accuracy"),
    draws=8,
    mistakes={
        "the cell is chosen on the test rows, so its accuracy is inflated":
            lambda *a: _search(*a, fitted="train", asked="test"),
        "the cell is chosen on the test rows, by a head that saw the other four fifths":
            lambda *a: _search(*a, asked="test"),
        "the cell is chosen on the rows the head was fitted to":
            lambda *a: _search(*a, asked="fit"),
        "the validation rows are among those fitted to, so they validate nothing":
            lambda *a: _search(*a, fitted="train"),
        "the cell is chosen on the training rows that fitted it, all of them":
            lambda *a: _search(*a, fitted="train", asked="train"),
        "the chosen head is not fitted anew to all training rows":
            lambda *a: _search(*a, refit=False),
        "the accuracy is that of the validation rows, where the test rows' is asked":
            _best_of_validation,
        "the accuracy is that of the training rows, where the test rows' is asked":
            _scored_on_train,
        "the worst cell is chosen: equation 16 minimises a loss, not an accuracy":
            lambda *a: _search(*a, sign=-1.0),
        "the first fifth of the training rows validates; the last one is asked for":
            lambda *a: _search(*a, first=True),
    },
)  # fmt: skip


# Extraction


class Inside(nn.Module):
    """A hidden state of a toy network: h (B, width, H, W) of x and t."""

    def __init__(self, channels: int, width: int, g: Generator) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(width, channels, generator=g))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Hidden state (B, width, H, W) of x (B, channels, H, W) and t (B,) or ()."""
        h = torch.einsum("wc,bchv->bwhv", self.mix, x)
        return (h * (1 + 3 * t.reshape(-1, 1, 1, 1).to(h))).sin() + h.square() / 4


class Glass(nn.Module):
    """A toy network with one hidden state, "inside"."""

    def __init__(self, channels: int, width: int, g: Generator) -> None:
        super().__init__()
        self.inside = Inside(channels, width, g)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """An answer of x's shape (B, channels, H, W)."""
        return self.inside(x, t).mean(1, keepdim=True).expand_as(x)


def _looking(g: Generator) -> Inputs:
    channels, width, grid = whole(2, 4, g), whole(5, 8, g), whole(3, 5, g)
    x0 = torch.randn(whole(8, 11, g), channels, grid, grid, generator=g)
    times = [0.15 + 0.2 * k + 0.1 * float(torch.rand((), generator=g))
             for k in range(whole(2, 5, g))]  # fmt: skip
    return {
        "denoise": Denoiser(Glass(channels, width, g), schedules.cosine(), "v"),
        "block": "inside", "x0": x0, "times": times,
        "noises": torch.randn(whole(2, 5, g), *x0.shape, generator=g),
    }  # fmt: skip


def _noised(denoise: Denoiser, x0: Tensor, t: float, eps: Tensor) -> Tensor:
    return denoise.schedule.add_noise(x0, torch.tensor(t, dtype=x0.dtype), eps)


@torch.no_grad()
def _averaged(
    denoise: Denoiser, block: str, x0: Tensor, times: list[float], noises: Tensor,
    noised: Callable[..., Tensor] = _noised,
    told: Callable[[float], float] = lambda t: t,
    pool: Callable[[Tensor], Tensor] = lambda h: h.mean((2, 3)),
) -> Tensor:  # fmt: skip
    rows = []
    for t in times:
        total = 0.0
        for eps in noises:
            with features.record(denoise, [block]) as seen:
                now = torch.tensor(told(t), dtype=x0.dtype)
                denoise(noised(denoise, x0, t, eps), now)
            total = total + pool(seen[block])
        rows.append(total / len(noises))
    return torch.stack(rows)


def _without_alpha(denoise: Denoiser, x0: Tensor, t: float, eps: Tensor) -> Tensor:
    return x0 + _noised(denoise, x0 * 0, t, eps)


averaged = Exercise(
    "averaged",
    draw=_looking,
    truth=_averaged,
    mistakes={
        "the noises are averaged and the network looks once; average what it holds":
            lambda d, b, x, t, e: _averaged(d, b, x, t, e.mean(0, keepdim=True)),
        "only the last noise counts: `seen` holds the last look, and is overwritten":
            lambda d, b, x, t, e: _averaged(d, b, x, t, e[-1:]),
        "only the first noise counts":
            lambda d, b, x, t, e: _averaged(d, b, x, t, e[:1]),
        "the features of all noises are summed, where their mean is asked":
            lambda d, b, x, t, e: _averaged(d, b, x, t, e) * len(e),
        "the largest value over the places is taken, where their mean is asked":
            lambda *a: _averaged(*a, pool=lambda h: h.amax((2, 3))),
        "the places are summed, where their mean is asked":
            lambda *a: _averaged(*a, pool=lambda h: h.sum((2, 3))),
        "the network is shown clean images; noise them first":
            lambda *a: _averaged(*a, noised=lambda d, x, t, e: x),
        "the network is shown noise alone; the images are missing":
            lambda *a: _averaged(*a, noised=lambda d, x, t, e: _noised(d, 0 * x, t, e)),
        "alpha is missing: x_t is alpha x0 + sigma eps":
            lambda *a: _averaged(*a, noised=_without_alpha),
        "eps is added as it is; it must be scaled by sigma":
            lambda *a: _averaged(
                *a, noised=lambda d, x, t, e: _noised(d, x, t, 0 * e) + e
            ),
        "the network is told the first time, whatever the noise level":
            lambda d, b, x, t, e: _averaged(d, b, x, t, e, told=lambda _: t[0]),
        "the network is told time 0; tell it the time of its noise":
            lambda *a: _averaged(*a, told=lambda _: 1e-3),
    },
)  # fmt: skip
