"""Discrete chains of betas, and the path that runs through their table.

Index k in 0..T-1 is noisy already: data stands before the chain, with abar = 1.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from math import pi

import torch
from torch import Tensor

from diffedu.errors import capturing, require, require_finite, require_same_shape
from diffedu.schedules.path import LOWEST_LOG_SNR, as_time
from diffedu.schedules.preserving import VariancePreserving
from diffedu.tensors import per_sample


class Chain:
    """The Markov chain x_k = sqrt(1 - beta_k) x_{k-1} + sqrt(beta_k) eps.

    Args:
        betas: the variance that each step adds, shape (T,), each in (0, 1]; 1 only at
            the end.

    Attributes, each (T,) in float64 on the CPU: `betas`, `alpha_bar` (with step k),
    `alpha_bar_previous` (1 first), `posterior_variance` (0 first).

    Raises:
        ValueError: for betas out of range. Warns when the last step still shows data.

    Source: (arXiv 2006.11239, eqs. 2-7).
    """

    def __init__(self, betas: Tensor) -> None:
        betas = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        ok = betas.dim() == 1 and len(betas) >= 2
        require(ok, f"betas must have shape (T,) with T >= 2, got {tuple(betas.shape)}")
        require_finite(betas, "betas")
        inside = (betas > 0).all() and (betas[:-1] < 1).all() and betas[-1] <= 1
        require(bool(inside), "each beta lies in (0, 1); only the last may be 1")
        self.betas, self.steps = betas, len(betas)
        log_kept = torch.log1p(-betas).cumsum(0)
        # 1 - abar from its logarithm: no digits are lost where abar is near 1
        self.alpha_bar, self._noise = log_kept.exp(), -torch.expm1(log_kept)
        nothing = torch.zeros(1, dtype=torch.float64)
        before = torch.cat([nothing, self._noise[:-1]])
        self.alpha_bar_previous = torch.cat([1 - nothing, self.alpha_bar[:-1]])
        self.posterior_variance = betas * before / self._noise
        if self.terminal_snr > 1e-2:
            warnings.warn(
                f"after {self.steps} steps the signal-to-noise ratio is still "
                f"{self.terminal_snr:.3g}: the last step shows data, and a sampler "
                "that starts from pure noise will miss it; use larger betas",
                stacklevel=2,
            )

    @property
    def terminal_snr(self) -> float:
        """abar / (1 - abar) at the last index."""
        return (self.alpha_bar[-1] / self._noise[-1]).item()

    @property
    def schedule(self) -> Table:
        """The path through the table: index k stands at t = (k + 1) / T."""
        return Table(self)

    def times(self, k: Tensor) -> Tensor:
        """The times of indices k, of any shape: (k + 1) / T, in float64 on the CPU."""
        k = self._index(k)
        exact = torch.float64 if k.device.type == "cpu" else torch.float32
        return (k.to(exact) + 1) / self.steps

    def _index(self, k: Tensor | int) -> Tensor:
        k = torch.as_tensor(k)
        if k.is_floating_point() or k.dtype == torch.bool:
            raise ValueError(f"an index of the chain is an integer, got {k.dtype}")
        inside = capturing() or bool(((k >= 0) & (k < self.steps)).all())
        require(inside, f"indices run from 0 to {self.steps - 1}; got one outside")
        return k

    def read(self, table: Tensor, k: Tensor | int, like: Tensor) -> Tensor:
        """table[k], broadcast against `like` of shape (B, ...) and in its dtype."""
        values = table.to(like.dtype).to(like.device)
        return per_sample(values[self._index(k).to(like.device)], like)

    def add_noise(self, x0: Tensor, k: Tensor | int, eps: Tensor) -> Tensor:
        """x_k = sqrt(abar_k) x0 + sqrt(1 - abar_k) eps, k of shape () or (B,)."""
        require_same_shape(x0, eps, "x0 and eps")
        signal = self.read(self.alpha_bar.sqrt(), k, x0)
        return signal * x0 + self.read(self._noise.sqrt(), k, x0) * eps

    def posterior(
        self, x0: Tensor, x_k: Tensor, k: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{k-1} | x_k, x0); at k = 0 that is x0 itself.

        Args:
            x0: clean data, shape (B, ...).
            x_k: the chain's state at k, same shape.
            k: indices, shape () or (B,).

        Returns:
            the mean, shape (B, ...), and the variance, shape () or (B, 1, ..., 1).

        Source: (arXiv 2006.11239, eq. 7).
        """
        require_same_shape(x0, x_k, "x0 and x_k")
        weight_x0 = self.alpha_bar_previous.sqrt() * self.betas / self._noise
        before = 1 - self.alpha_bar_previous
        weight_xk = (1 - self.betas).sqrt() * before / self._noise
        mean = self.read(weight_x0, k, x0) * x0 + self.read(weight_xk, k, x0) * x_k
        return mean, self.read(self.posterior_variance, k, x0)

    def with_zero_terminal_snr(self) -> Chain:
        """This chain with sqrt(abar) shifted and stretched to end at exactly 0.

        Source: (arXiv 2305.08891, algorithm 1).
        """
        root = self.alpha_bar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        kept = root.square()
        ratio = torch.cat([kept[:1], kept[1:] / kept[:-1]])
        return Chain(1 - ratio)


class Table(VariancePreserving):
    """The path through a chain's table, turning by equal angles between its points.

    alpha = cos(angle) and sigma = sin(angle), with the angle linear between
    neighbours: exact at the table's points, and finite rates at both ends.
    """

    name = "table"

    def __init__(self, chain: Chain) -> None:
        self._chain, self.steps = chain, chain.steps
        angle = torch.atan2(chain._noise.sqrt(), chain.alpha_bar.sqrt())
        self._angle = torch.cat([torch.zeros(1).double(), angle])
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __repr__(self) -> str:
        return f"Table(steps={self.steps}, terminal_snr={self.terminal_snr:.3g})"

    def chain(self, steps: int | None = None) -> Chain:
        """The chain behind the table; another length is refused."""
        same = steps is None or steps == self.steps
        require(same, f"this table has {self.steps} steps; respace with time_grid")
        return self._chain

    def _angles(self, like: Tensor) -> Tensor:
        """The table (T + 1,) in another's dtype and on its device, copied there once.

        So a CUDA graph finds it on the device: a copy from the CPU ends a capture.
        """
        place = like.dtype, like.device
        if place not in self._copies:
            self._copies[place] = self._angle.to(like.dtype).to(like.device)
        return self._copies[place]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The angle at t and its rate d angle / dt."""
        place = t * self.steps
        left = (place.ceil() - 1).clamp(0, self.steps - 1)
        angle = self._angles(t)
        start, end = angle[left.long()], angle[left.long() + 1]
        return torch.lerp(start, end, place - left), (end - start) * self.steps

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = self._segment(t)[0]
        # cos(angle) as sin(pi/2 - angle) would not be 0 at a quarter turn
        alpha = angle.cos().masked_fill(angle >= pi / 2, 0.0)
        return alpha, angle.sin()

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """d alpha/dt and d sigma/dt, from the left at the table's points."""
        angle, rate = self._segment(as_time(t))
        return -rate * angle.sin(), rate * angle.cos()

    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-0.5 * log_snr))
        table = self._angles(angle)
        right = torch.searchsorted(table, angle.contiguous()).clamp(1, self.steps)
        start, end = table[right - 1], table[right]
        return (right - 1 + (angle - start) / (end - start)) / self.steps

    @cached_property
    def t_max(self) -> float:
        """The last point of the table with log-SNR >= -12."""
        points = torch.arange(1, self.steps + 1).double() / self.steps
        return points[self.log_snr(points) >= LOWEST_LOG_SNR].max().item()


def from_betas(betas: Tensor) -> Table:
    """The path through the chain of these betas, shape (T,): index k at (k + 1) / T."""
    return Chain(betas).schedule
