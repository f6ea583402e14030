"""Features of many samples at chosen blocks and times: what every probe is fed.

Noise the data, look, keep the hidden states, pool them over places, average them over
noises. This is the first step of the one framework of representation extraction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffedu.errors import lookup, require, require_finite
from diffedu.features.cache import Shelf
from diffedu.features.hooks import blocks_of, names_of, network_of, record
from diffedu.tensors import normal_like


def _spatial(h: Tensor) -> tuple[int, ...]:
    """The axes that are places: two of (B, C, H, W), one of (B, N, C), else none."""
    return {4: (2, 3), 3: (1,)}.get(h.dim(), ())


def _over_places(reduce: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda h: reduce(h, dim=_spatial(h)) if _spatial(h) else h


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda h: h,
    "mean": _over_places(torch.mean),
    "max": _over_places(torch.amax),
}


@torch.no_grad()
def extract(
    denoise: nn.Module,
    x0: Tensor,
    t: float | Tensor | Sequence[float],
    blocks: Sequence[str] | None = None,
    *,
    pool: str | Callable[[Tensor], Tensor] = "mean",
    draws: int = 1,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    cache: str | Path | None = None,
    **condition: Tensor | None,
) -> dict[str, Tensor]:
    """What the network holds inside while it looks at noised data; no gradients.

    Args:
        denoise: a Denoiser, or a wrapper of one.
        x0: clean data, shape (N, ...).
        t: one time in (0, 1], or several: shape () or a sequence of K.
        blocks: names of modules of its network; None is all of `blocks_of`.
        pool: "mean" or "max" over places, "none", or a function of one hidden state.
        draws: how many noises the (pooled) features are averaged over. All times see
            the same ones.
        noise: standard noise, shape of x0, or (draws, *x0.shape); fresh unless given,
            and zeros show the network clean data.
        generator: source of fresh noise.
        batch_size: samples looked at together; the answer does not depend on it.
        cache: a folder. An answer is kept there under a name made of all that it
            depends on, weights and data included, and read when asked for again.
        **condition: passed to the denoiser, such as `label=y`; tensors of N rows are
            split with the data.

    Returns:
        for each block its features, shape (N, ...) on x0's device; (K, N, ...) for
        several times.

    Raises:
        ValueError: for an unknown block or pool, an empty or non-finite x0, draws
            below 1, noise of another shape, or a cache with neither noise nor
            generator, whose answer could not be told from another.

    Source: the framework of (arXiv 2407.00783, section 3.1.2).
    """
    names = blocks_of(denoise) if blocks is None else names_of(blocks)
    require(x0.dim() >= 2 and len(x0) > 0, f"x0 needs (N, ...), got {tuple(x0.shape)}")
    require(draws >= 1 and batch_size >= 1, "draws and batch_size must be 1 or more")
    require_finite(x0, "x0")
    pooling = pool if callable(pool) else lookup(POOLS, pool, "pool")
    require(
        cache is None or isinstance(pool, str),
        f"with cache= the pool must be one of {', '.join(POOLS)}: what a function "
        "depends on cannot be told from outside",
    )
    shelf = Shelf(cache, generator, noise)
    told = [names, pool, draws, condition, noise, x0, _times(t)]
    if (known := shelf.find(denoise, told)) is not None:
        return known
    noises = _noises(x0, draws, noise, generator)
    answers = [
        _at_one_time(denoise, x0, time, names, pooling, noises, batch_size, condition)
        for time in _times(t)
    ]
    several = isinstance(t, Sequence) or (isinstance(t, Tensor) and t.dim() == 1)
    features = {
        name: torch.stack([a[name] for a in answers]) if several else answers[0][name]
        for name in names
    }
    shelf.keep(features)
    return features


def _times(t: float | Tensor | Sequence[float]) -> list[Tensor]:
    times = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
    require(
        len(times) > 0 and bool(((times > 0) & (times <= 1)).all()),
        f"t must lie in (0, 1], one time or several; got {t}",
    )
    return list(times.unbind())


def _noises(
    x0: Tensor, draws: int, noise: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The noises (draws, N, ...), recorded or fresh."""
    if noise is None:
        return torch.stack([normal_like(x0, generator) for _ in range(draws)])
    shape = (draws, *x0.shape)
    noise = noise[None] if noise.shape == x0.shape and draws == 1 else noise
    require(
        tuple(noise.shape) == shape,
        f"noise must have shape (draws, *x0.shape) = {shape}, got {tuple(noise.shape)}",
    )
    return noise.to(x0)


def _at_one_time(
    denoise: nn.Module,
    x0: Tensor,
    t: Tensor,
    names: list[str],
    pool: Callable[[Tensor], Tensor],
    noises: Tensor,
    batch_size: int,
    condition: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """Features (N, ...) of every block at one time, averaged over the noises."""
    device = next(network_of(denoise).parameters()).device
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for rows in torch.arange(len(x0)).split(batch_size):
        given = {k: _rows(c, rows, len(x0), device) for k, c in condition.items()}
        total = dict.fromkeys(names, 0.0)
        for noise in noises:
            clean = x0[rows.to(x0.device)].to(device)
            eps = noise[rows.to(noise.device)].to(device)
            with record(denoise, names) as seen:
                denoise(denoise.schedule.add_noise(clean, t, eps), t, **given)
            total = {name: total[name] + pool(seen[name]) for name in names}
        for name in names:
            parts[name].append((total[name] / len(noises)).to(x0.device))
    return {name: torch.cat(parts[name]) for name in names}


def _rows(
    value: Tensor | None, rows: Tensor, samples: int, device: torch.device
) -> Tensor | None:
    """A condition for some rows: split if it has one entry a sample."""
    if not isinstance(value, Tensor):
        return value
    split = value.dim() > 0 and len(value) == samples
    return (value[rows.to(value.device)] if split else value).to(device)
