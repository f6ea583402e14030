"""What a denoiser answers: one piece of knowledge, read as x0, eps, v or score.

A parametrisation is a linear relation between x0 and eps, and so is x_t itself. Two
relations, two unknowns: every conversion of the library is that one small solve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diffedu.errors import capturing, lookup, require
from diffedu.schedules import Schedule
from diffedu.tensors import per_sample

Number = float | Tensor


def for_batch(value: Tensor, x: Tensor) -> Number:
    """A coefficient ready to multiply x (B, ...): a float when t is one number.

    One time for a whole batch, as in every sampler, makes floats in double precision;
    a time for each sample makes tensors of shape (B, 1, ..., 1) in x's dtype.
    """
    if value.dim() == 0 and value.device.type == "cpu" and not value.requires_grad:
        return value.item()
    return per_sample(value, x).to(x.dtype).to(x.device)


def combine(a: Number, x: Tensor, b: Number, y: Tensor) -> Tensor:
    """a x + b y for x, y of one shape (B, ...), in as few passes as possible."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * y
    if a == 0 or b == 0:
        return b * y if a == 0 else a * x
    return torch.add(x * a, y, alpha=b)


class Point:
    """A time on a path, for one batch: alpha, sigma and, if asked for, their rates."""

    def __init__(self, schedule: Schedule, t: Tensor, x: Tensor) -> None:
        self._schedule, self._t, self._x = schedule, t, x
        alpha, sigma = schedule.coefficients(t)
        self.alpha, self.sigma = for_batch(alpha, x), for_batch(sigma, x)

    @cached_property
    def rates(self) -> tuple[Number, Number]:
        """d alpha/dt and d sigma/dt."""
        alpha_rate, sigma_rate = self._schedule.rates(self._t)
        return for_batch(alpha_rate, self._x), for_batch(sigma_rate, self._x)


Weights = Callable[[Point], tuple[Number, Number]]


@dataclass(frozen=True)
class Parametrisation:
    """What a network predicts, as the weights (p, q) of p x0 + q eps at each point."""

    name: str
    weights: Weights

    def target(self, x0: Tensor, eps: Tensor, point: Point) -> Tensor:
        """What the network should answer for x0 and eps, both of shape (B, ...)."""
        p, q = self.weights(point)
        return combine(p, x0, q, eps)


def edm(sigma_data: float = 0.5) -> Parametrisation:
    """The raw network F of EDM, of unit variance for data of variance sigma_data^2.

    In their terms D = c_skip x + c_out F at sigma / alpha (arXiv 2206.00364, eq. 7).
    """
    require(sigma_data > 0, f"sigma_data must be above 0, got {sigma_data}")

    def weights(at: Point) -> tuple[Number, Number]:
        scale = (at.sigma**2 + (sigma_data * at.alpha) ** 2) ** 0.5
        return at.sigma / (sigma_data * scale), -sigma_data * at.alpha / scale

    return Parametrisation("edm", weights)


PARAMETRISATIONS = {
    kind.name: kind
    for kind in (
        Parametrisation("eps", lambda at: (0.0, 1.0)),
        Parametrisation("x0", lambda at: (1.0, 0.0)),
        Parametrisation("v", lambda at: (-at.sigma, at.alpha)),
        Parametrisation("score", lambda at: (0.0, -1 / at.sigma)),
        Parametrisation("velocity", lambda at: at.rates),
        edm(),
    )
}


class Prediction:
    """What a denoiser says of x_t, to be read under any of its names.

    Args:
        x: the noisy batch x_t, shape (B, ...).
        t: its time, shape () or (B,).
        schedule: the path it lies on.
        kind: which quantity `value` is: a name of PARAMETRISATIONS, or one made by
            `edm(sigma_data)`.
        value: that quantity, shape of x.
        variance_fraction: where a net also says where its variance lies, in log,
            between the posterior's (0) and the transition's (1): shape of x.

    Attributes: `x0`, `eps`, `v`, `score` and `velocity`, each of x's shape, computed
    when first read. They agree with each other: x = alpha x0 + sigma eps.
    """

    def __init__(
        self,
        x: Tensor,
        t: Tensor,
        schedule: Schedule,
        kind: str | Parametrisation,
        value: Tensor,
        variance_fraction: Tensor | None = None,
    ) -> None:
        if isinstance(kind, str):
            kind = lookup(PARAMETRISATIONS, kind, "parametrisation")
        self.x, self.t, self.schedule = x, t, schedule
        self.variance_fraction = variance_fraction
        self.at = Point(schedule, t, x)
        # a score is eps by another scale, and eps needs no division to be one
        if kind.name == "score":
            kind, value = PARAMETRISATIONS["eps"], value * -self.at.sigma
        self.kind, self.value = kind, value

    def _read(self, name: str) -> Tensor:
        if name == self.kind.name:
            return self.value
        return self.mix(*PARAMETRISATIONS[name].weights(self.at), name)

    def mix(self, of_x0: Number, of_eps: Number, name: str = "x0") -> Tensor:
        """of_x0 x0 + of_eps eps, in one combination of x and the network's answer.

        It solves the two linear relations, x's and the answer's, for a third.

        Args:
            of_x0: the weight of x0, a float or of shape (B, 1, ..., 1).
            of_eps: the weight of eps, the same.
            name: what is being read, for the error.

        Returns:
            the quantity, shape of x.

        Raises:
            ValueError: where x and the answer say the same thing.
        """
        alpha, sigma = self.at.alpha, self.at.sigma
        p, q = self.kind.weights(self.at)
        determinant = alpha * q - sigma * p
        self._require_nonzero(determinant, name)
        weight_x = (of_x0 * q - of_eps * p) / determinant
        weight_value = (alpha * of_eps - sigma * of_x0) / determinant
        return combine(weight_x, self.x, weight_value, self.value)

    def _require_nonzero(self, determinant: Number, name: str) -> None:
        zero = determinant == 0
        if isinstance(zero, Tensor):
            zero = not capturing() and bool(zero.any())
        if zero:
            raise ValueError(
                f"{name} cannot be read from {self.kind.name} where alpha or sigma is "
                f'0, as on the path "{self.schedule.name}" at '
                f"t={self.t.max().item():g}. Start at schedule.t_max = "
                f'{self.schedule.t_max:g}, or predict "v"'
            )

    @cached_property
    def x0(self) -> Tensor:
        """The mean of the clean data given x_t."""
        return self._read("x0")

    @cached_property
    def eps(self) -> Tensor:
        """The mean of the noise given x_t."""
        return self._read("eps")

    @cached_property
    def v(self) -> Tensor:
        """alpha eps - sigma x0 (arXiv 2202.00512, section 4)."""
        return self._read("v")

    @cached_property
    def velocity(self) -> Tensor:
        """dx/dt along the probability-flow ODE: alpha' x0 + sigma' eps."""
        return self._read("velocity")

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t) = -eps / sigma."""
        return self.eps * (-1 / self.at.sigma)
