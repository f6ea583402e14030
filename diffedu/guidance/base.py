"""What every guidance rule is: a denoiser around a denoiser.

A rule changes what its inner denoiser says, in the inner one's own parametrisation,
and answers a Prediction again. So rules nest, and every sampler takes the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import capturing, require
from diffedu.prediction import Number, Parametrisation, Prediction
from diffedu.tensors import per_sample

Scale = float | Tensor


class Guidance(DenoiserBase):
    """A denoiser around a denoiser, with a strength where it has one.

    Args:
        inner: any denoiser, another rule among them.
    """

    def __init__(self, inner: DenoiserBase) -> None:
        super().__init__()
        whole = isinstance(inner, DenoiserBase)
        require(whole, f"{inner!r} is no denoiser; wrap a net as Denoiser(net, ...)")
        self.inner, self.schedule = inner, inner.schedule

    def plain(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """What x (B, ...) at t () or (B,) looks like without this rule."""
        return self.inner(x, t, **condition)


def checked_scale(scale: Scale) -> Scale:
    """A finite number, or a tensor of shape () or (B,); ValueError otherwise."""
    if isinstance(scale, Tensor):
        require(scale.dim() <= 1, f"scale needs shape () or (B,), got {scale.shape}")
        require(capturing() or bool(scale.isfinite().all()), "a scale is not finite")
        return scale
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    require(
        number and math.isfinite(scale),
        f"scale must be a number or a tensor of shape (B,), got {scale!r}; 1 is the "
        "plain conditional model, 0 the unconditional one",
    )
    return scale


def scale_for(scale: Scale, x: Tensor) -> Number:
    """The scale as it multiplies x (B, ...): a float, or shape (B, 1, ..., 1)."""
    if isinstance(scale, Tensor):
        return per_sample(scale.to(x), x)
    return scale


def mixed(base: Prediction, aim: Prediction, scale: Scale) -> Prediction:
    """base + scale (aim - base), in aim's parametrisation; exact at 0 and 1.

    Args:
        base: what scale 0 gives.
        aim: what scale 1 gives, of the same x_t.
        scale: a number, or shape (B,).
    """
    weight = scale_for(scale, aim.x)
    value = torch.lerp(read_as(base, aim.kind), aim.value, weight)
    fraction = aim.variance_fraction
    return Prediction(aim.x, aim.t, aim.schedule, aim.kind, value, fraction)


def read_as(seen: Prediction, kind: Parametrisation) -> Tensor:
    """The prediction as a network of this kind would have answered: shape (B, ...)."""
    if seen.kind is kind:
        return seen.value
    return seen.mix(*kind.weights(seen.at), kind.name)


def score_added(seen: Prediction, push: Tensor) -> Prediction:
    """The prediction with `push`, of x's shape, added to its score.

    At a fixed x_t, eps falls by sigma push and x0 rises by sigma^2 / alpha push; the
    answer keeps the parametrisation it had.

    Raises:
        ValueError: where alpha is 0, so that no score says anything of x0.
    """
    p, q = seen.kind.weights(seen.at)
    alpha, sigma = seen.at.alpha, seen.at.sigma
    blind = alpha == 0
    if isinstance(blind, Tensor):
        blind = not capturing() and bool(blind.any())
    require(
        not blind,
        f'a push on the score needs alpha above 0, and on the path "'
        f'{seen.schedule.name}" it is 0 at t={seen.t.max().item():g}. Start at '
        f"schedule.t_max = {seen.schedule.t_max:g}",
    )
    of_x0 = p * sigma**2 / alpha if isinstance(p, Tensor) or p != 0 else 0.0
    value = seen.value + (of_x0 - q * sigma) * push
    fraction = seen.variance_fraction
    return Prediction(seen.x, seen.t, seen.schedule, seen.kind, value, fraction)


def as_batch(t: Tensor | float, x: Tensor) -> Tensor:
    """The time as shape (B,) in x's dtype and on its device, as networks want it."""
    return torch.as_tensor(t).to(x).expand(len(x))
