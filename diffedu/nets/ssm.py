"""A diagonal state-space mixer: tokens speak through a state that runs along them.

Attention pays for every pair of tokens, a state only for every token. The module has
attention's shape, (B, N, width) to the same, so it can take its place in a `DiT`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from diffedu.errors import lookup
from diffedu.nets.conditions import require_positive


def convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution by FFT: y_k = sum_{j <= k} kernel_j u_{k-j}.

    Args:
        u: shape (B, width, N).
        kernel: shape (width, N).

    Returns:
        shape (B, width, N).
    """
    n = u.shape[-1]
    product = torch.fft.rfft(u, 2 * n) * torch.fft.rfft(kernel, 2 * n)
    return torch.fft.irfft(product, 2 * n)[..., :n]


def scan(u: Tensor, decay: Tensor, into: Tensor, out: Tensor) -> Tensor:
    """The same by running h_k = decay h_{k-1} + into u_k, y_k = 2 Re(out h_k).

    Args:
        u: shape (B, width, N).
        decay, into, out: complex, (width, states).

    Returns:
        shape (B, width, N).
    """
    h, answers = torch.zeros_like(into), []
    for now in u.unbind(2):
        h = decay * h + into * now[..., None]
        answers.append(2 * (out * h).sum(-1).real)
    return torch.stack(answers, dim=2)


METHODS = ("fft", "scan")


class StateSpace(nn.Module):
    """Tokens mixed by a diagonal state-space model, forwards and backwards.

    For each feature x' = A x + u, y = 2 Re(C x) + D u, with A diagonal and complex,
    held constant over a step of dt (S4D, 2206.11893). The tokens are read in their
    order, row by row for patches, so two that are neighbours in a column are far.

    Args:
        width: features of a token.
        states: complex states a feature.
        method: "fft" makes the kernel and convolves; "scan" runs the state, which is
            slow here and equal.

    Raises:
        ValueError: if a number is not above 0 or the method is unknown.
    """

    def __init__(self, width: int, states: int = 8, method: str = "fft") -> None:
        super().__init__()
        require_positive(width=width, states=states)
        lookup(dict.fromkeys(METHODS), method, "method")
        self.method = method
        spread = torch.linspace(math.log(0.01), math.log(0.5), width)
        self.log_dt = nn.Parameter(spread)
        self.log_decay = nn.Parameter(torch.full((width, states), math.log(0.5)))
        turns = math.pi * torch.arange(states, dtype=torch.float32)
        self.turn = nn.Parameter(turns.repeat(width, 1))
        self.out_real = nn.Parameter(torch.randn(2, width, states) / states**0.5)
        self.out_imag = nn.Parameter(torch.randn(2, width, states) / states**0.5)
        self.direct = nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, width) to the same shape."""
        u = tokens.transpose(1, 2)
        run = self._by_fft if self.method == "fft" else self._by_scan
        there, back = run(u, 0), run(u.flip(2), 1).flip(2)
        y = there + back + self.direct[:, None] * u
        return self.out(nn.functional.gelu(y.transpose(1, 2)))

    def discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        """The log of a step's decay, what enters, both (width, states), and C.

        The state decays by exp(dt A) a step and takes in (exp(dt A) - 1) / A times u:
        exact for a u that is constant over the step.
        """
        a = torch.complex(-self.log_decay.exp(), self.turn)
        exponent = a * self.log_dt.exp()[:, None]
        into = (exponent.exp() - 1) / a
        return exponent, into, torch.complex(self.out_real, self.out_imag)

    def kernel(self, n: int) -> Tensor:
        """The answers to one impulse, forwards and backwards, (2, width, n)."""
        require_positive(n=n)
        exponent, into, out = self.discrete()
        steps = torch.arange(n, device=exponent.device, dtype=self.log_dt.dtype)
        powers = (exponent[..., None] * steps).exp()  # (width, states, n)
        return 2 * torch.einsum("dws,wsn->dwn", out * into, powers).real

    def _by_fft(self, u: Tensor, direction: int) -> Tensor:
        return convolve(u, self.kernel(u.shape[-1])[direction])

    def _by_scan(self, u: Tensor, direction: int) -> Tensor:
        exponent, into, out = self.discrete()
        return scan(u, exponent.exp(), into, out[direction])
