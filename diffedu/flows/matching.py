"""The loss of flow matching: regress the velocity of a pair, learn its average.

A pair (x0, x1) moves along x_t = alpha x0 + sigma x1. With x1 noise this is the
diffusion path; x1 may as well be a second data set, and how x0 and x1 are paired is
free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require, require_same_shape
from diffedu.prediction import Point, combine
from diffedu.schedules import Schedule
from diffedu.tensors import batch_mean, normal_like

PairUp = Callable[[Tensor, Tensor], Tensor]


def _times(path: Schedule, x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in [t_min, 1), shape (B,): up to the far end, where a walk starts."""
    device = generator.device if generator is not None else x0.device
    u = torch.rand(len(x0), dtype=x0.dtype, device=device, generator=generator)
    return path.t_min + (1 - path.t_min) * u.to(x0)


def flow_matching(
    denoise: DenoiserBase,
    x0: Tensor,
    x1: Tensor | None = None,
    t: Tensor | float | None = None,
    pair_up: PairUp | None = None,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    **condition: Tensor | None,
) -> Tensor:
    """The squared error of a denoiser's velocity, for pairs (x0, x1).

    Its minimiser is the mean velocity of all pairs that pass through x_t. At t = 1 on
    the flow path, with the pairs of a solved ODE, it is the distillation of that ODE
    into one step.

    Args:
        denoise: any denoiser, usually one that predicts "velocity" on
            `schedules.flow()`.
        x0: what stands at t = 0, shape (B, ...).
        x1: what stands at t = 1, shape of x0; standard noise unless given.
        t: times, shape (B,) or (); uniform unless given.
        pair_up: called as `pair_up(x0, x1)`; answers x1 in a new order, shape of x1.
            `minibatch_ot` is one.
        per_sample: whether to return each sample's loss.
        generator: source of noise and times.
        **condition: passed to the denoiser, such as `label=y`.

    Returns:
        the mean over elements, then over the batch: shape (), or (B,) if per_sample.

    Raises:
        ValueError: for empty data, integers, or shapes that differ.

    Source: (arXiv 2210.02747, theorem 2); for any pairs, (arXiv 2209.03003, eq. 1) and
    (arXiv 2302.00482). In these papers t = 0 is noise.
    """
    require(x0.dim() >= 2 and len(x0) > 0, f"x0 needs (B, ...), got {tuple(x0.shape)}")
    require(x0.is_floating_point(), f"x0 must be floating, got {x0.dtype}")
    x1 = normal_like(x0, generator) if x1 is None else x1
    require_same_shape(x0, x1, "x0 and x1")
    x1 = x1 if pair_up is None else pair_up(x0, x1)
    path = denoise.schedule
    t = torch.as_tensor(_times(path, x0, generator) if t is None else t)
    x_t = path.add_noise(x0, t, x1)
    alpha_rate, sigma_rate = Point(path, t, x_t).rates
    target = combine(alpha_rate, x0, sigma_rate, x1)
    loss = batch_mean((denoise(x_t, t, **condition).velocity - target).square())
    return loss if per_sample else loss.mean()
