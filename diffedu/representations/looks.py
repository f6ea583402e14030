"""Looks of a classifier: where they lie in noise, and how far each class errs there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require, require_same_shape
from diffedu.schedules import Schedule

Conditions = Mapping[str, Tensor]  # by keyword: a row for each class


def even_places(
    looks: int, shape: tuple[int, ...], generator: torch.Generator | None = None
) -> Tensor:
    """Places in [0, 1) that lie evenly however early one stops: (looks, *shape).

    A van der Corput sequence with one uniform shift for each entry of `shape`, so
    that every place alone is uniform and any estimate from them is unbiased.
    """
    device = "cpu" if generator is None else generator.device
    shift = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
    places = [int(f"{j:032b}"[::-1], 2) / 2**32 for j in range(looks)]
    base = torch.tensor(places, dtype=torch.float64, device=device)
    return (base.reshape(-1, *(1,) * len(shape)) + shift) % 1


def _by_log_snr(path: Schedule, place: Tensor, ends: tuple[float, float]) -> Tensor:
    low, high = ends
    return path.time_of_log_snr(high + (low - high) * place)


def _by_time(path: Schedule, place: Tensor, ends: tuple[float, float]) -> Tensor:
    first, last = (path.time_of_log_snr(torch.tensor(e).double()) for e in ends[::-1])
    return first + (last - first) * place


# how looks spread over noise levels, and what a mean squared error then counts
WEIGHTINGS = {
    # half the width in log-SNR: the mean is the bound's integral, in nats
    "likelihood": (_by_log_snr, lambda ends: 0.5 * (ends[1] - ends[0])),
    "uniform": (_by_time, lambda ends: 1.0),
}


def denoising_errors(
    denoise: DenoiserBase,
    x0: Tensor,
    conditions: Conditions,
    t: Tensor,
    noise: Tensor,
    alive: Tensor | None = None,
    batch: int = 1024,
) -> Tensor:
    """|eps - eps_hat(x_t, class)|^2 of every class, summed over elements: (B, C).

    Args:
        denoise: a denoiser that knows the classes.
        x0: data, shape (B, ...).
        conditions: by keyword, a tensor with a row for each of the C classes, such as
            `{"label": torch.arange(10)}`.
        t: times in (0, 1]: (B,), one look shared by the classes, or (B, C).
        noise: standard noise: shape of x0, or (B, C, ...) with one for each class.
        alive: which classes to ask, (B, C) bool; the others' errors are 0.
        batch: the network sees at most so many at once.

    Raises:
        ValueError: if shapes do not fit, or there are fewer than two classes.
    """
    classes = class_count(conditions)
    each_t = (t if t.dim() == 2 else t[:, None].expand(-1, classes)).to(x0)
    shared = noise.dim() == x0.dim()
    eps = noise[:, None].expand(-1, classes, *x0.shape[1:]) if shared else noise
    require_same_shape(eps[:, 0], x0, "noise and x0")
    shape = (len(x0), classes)
    require(each_t.shape == shape, f"t has shape {tuple(t.shape)}, for {shape}")
    alive = torch.ones(shape, dtype=torch.bool) if alive is None else alive
    sample, k = alive.to(x0.device).nonzero(as_tuple=True)
    found = [
        _errors(denoise, x0[b], each_t[b, c], eps[b, c], rows_of(conditions, c))
        for b, c in zip(sample.split(batch), k.split(batch), strict=True)
    ]
    out = x0.new_zeros(shape)
    out[sample, k] = torch.cat(found)
    return out


@torch.no_grad()
def _errors(
    denoise: DenoiserBase, x0: Tensor, t: Tensor, eps: Tensor, condition: Conditions
) -> Tensor:
    """The squared error of eps in one batch, (B,)."""
    seen = denoise(denoise.schedule.add_noise(x0, t, eps), t, **condition)
    return (seen.eps - eps).square().flatten(1).sum(1)


def rows_of(conditions: Conditions, k: Tensor) -> dict[str, Tensor]:
    return {name: rows.to(k.device)[k] for name, rows in conditions.items()}


def class_count(conditions: Conditions) -> int:
    """C, the number of rows of every condition; ValueError unless they agree."""
    sizes = {name: len(rows) for name, rows in conditions.items()}
    ok = len(set(sizes.values())) == 1 and min(sizes.values()) >= 2
    require(
        ok,
        f"conditions have {sizes or 'no'} rows; give each keyword one row a class, "
        'two or more, as {"label": torch.arange(10)}',
    )
    return next(iter(sizes.values()))
