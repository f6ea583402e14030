"""Training-free guidance: the slope of an energy of the predicted clean data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.denoiser import DenoiserBase
from diffedu.errors import require
from diffedu.guidance.base import (
    Guidance,
    Scale,
    checked_scale,
    scale_for,
    score_added,
)
from diffedu.prediction import Prediction
from diffedu.samplers import ddim_step
from diffedu.samplers.walk import Step
from diffedu.tensors import normal_like


class EnergyGuidance(Guidance):
    """score - scale grad_x E(x0(x_t)): an energy of clean data, used at every level.

    The gradient runs through the network, from x0 back to x_t. It would be exact if
    x_t left no doubt about x0; E of the mean stands for the mean of exp(-E).

    Args:
        inner: any denoiser.
        energy: called as `energy(x0)` with x0 (B, ...); low where wanted, shape (B,).
        scale: 0 is no guidance; exp(-scale E) is what the data are weighed by, were
            it exact. A number or shape (B,).

    Source: (arXiv 2303.09833, algorithm 1), whose step x - rho g is this one, where
    the step is DDIM's, with rho = scale sigma_t (alpha_s sigma_t / alpha_t - sigma_s).
    """

    def __init__(
        self,
        inner: DenoiserBase,
        energy: Callable[[Tensor], Tensor],
        scale: Scale,
    ) -> None:
        super().__init__(inner)
        require(callable(energy), f"an energy is called as energy(x0), got {energy!r}")
        self.energy, self.scale = energy, checked_scale(scale)

    def forward(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> Prediction:
        """Look at x_t of shape (B, ...) at t of shape () or (B,), and push it."""
        seen, slope = self.slope(x, t, **condition)
        return score_added(seen, -scale_for(self.scale, x) * slope)

    def slope(
        self, x: Tensor, t: Tensor | float, **condition: Tensor | None
    ) -> tuple[Prediction, Tensor]:
        """What the inner denoiser sees, and grad_x E(x0(x_t)) of shape (B, ...).

        Args:
            x: x_t, shape (B, ...).
            t: its time, shape () or (B,).
            **condition: passed to the inner denoiser.

        Raises:
            ValueError: if the energy does not answer one number a sample.
        """
        training = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            x = x if training else x.detach().requires_grad_()
            seen = self.inner(x, t, **condition)
            energy = self.energy(seen.x0)
            shape = tuple(energy.shape)
            require(shape == (len(x),), f"energy needs shape ({len(x)},), got {shape}")
            (slope,) = torch.autograd.grad(
                energy.sum(), x, create_graph=training, retain_graph=training
            )
        return (seen if training else _detached(seen)), slope


def _detached(seen: Prediction) -> Prediction:
    """The prediction without the graph that was needed for its slope."""
    fraction = seen.variance_fraction
    fraction = None if fraction is None else fraction.detach()
    x, value = seen.x.detach(), seen.value.detach()
    return Prediction(x, seen.t, seen.schedule, seen.kind, value, fraction)


class TimeTravel:
    """Go back up a step and take it again, several times: an `after` of a sampler.

    After a step from t to s, the state is noised from s back to t, and the step is
    taken anew with DDIM; so is every repeat. It gives a guided walk time to agree
    with the model again. Use it with `samplers.ddim` of the same eta.

    Args:
        denoise: the guided denoiser that walks.
        repeats: how often each step is taken again.
        low: times s below it are left alone.
        high: times s above it are left alone.
        eta: DDIM's, 0 to 1.
        generator: source of the fresh noise.
        **condition: what the denoiser is told, such as `label=y`.

    Source: (arXiv 2303.09833, algorithm 2); (arXiv 2201.09865, algorithm 1).
    """

    def __init__(
        self,
        denoise: DenoiserBase,
        repeats: int,
        low: float = 0.0,
        high: float = 1.0,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        **condition: Tensor | None,
    ) -> None:
        require(repeats >= 0, f"repeats counts steps taken again, got {repeats}")
        require(0 <= low <= high <= 1, f"need 0 <= low <= high <= 1: {low}, {high}")
        require(0 <= eta <= 1, f"eta runs from 0 to 1, got {eta}")
        self.denoise, self.repeats, self.eta = denoise, repeats, eta
        self.low, self.high = low, high
        self.generator, self.condition = generator, condition

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """The state (B, ...) at step.s, after the step was taken again."""
        # from clean data nothing is noised: that step ends the walk
        if step.s == 0 or not self.low <= step.s <= self.high:
            return x
        for _ in range(self.repeats):
            x_t = self._up(x, step)
            fresh = normal_like(x, self.generator) if self.eta > 0 else None
            x = ddim_step(
                self.denoise, x_t, step.t, step.s,
                eta=self.eta, noise=fresh, **self.condition,
            )  # fmt: skip
        return x

    def _up(self, x: Tensor, step: Step) -> Tensor:
        """A draw of x_t from q(x_t | x_s), for x_s of shape (B, ...)."""
        path = self.denoise.schedule
        ratio = (path.alpha(step.t) / path.alpha(step.s)).item()
        spread = path.transition_variance(step.t, step.s).sqrt().item()
        return ratio * x + spread * normal_like(x, self.generator)
