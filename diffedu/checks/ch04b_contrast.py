"""Check of chapter 4b's energy exercise: Langevin chains, and the contrast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from diffedu.checks.ch03_fields import whole
from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]
EnergyFunction = Callable[[Tensor], Tensor]


def _energy(dim: int, g: Generator) -> EnergyFunction:
    """A smooth random energy on R^dim: (B, dim) -> (B,)."""
    into = torch.randn(5, dim, generator=g)
    out = torch.randn(5, generator=g)
    return lambda x: torch.tanh(x @ into.T.to(x)) @ out.to(x) + x.square().sum(1) / 2


def _batch(g: Generator) -> Inputs:
    size, dim, chains = whole(4, 9, g), whole(2, 5, g), whole(4, 9, g)
    steps = whole(2, 5, g)
    return {
        "energy": _energy(dim, g),
        "real": torch.randn(size, dim, generator=g),
        "chains": torch.randn(chains, dim, generator=g),
        "step": 0.05 + 0.1 * torch.rand((), generator=g),
        "noise": torch.randn(steps, chains, dim, generator=g),
    }


def _slope(energy: EnergyFunction, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x)[0]


def _walk(
    energy: EnergyFunction, x: Tensor, step: Tensor, noise: Tensor,
    push: float = -1.0, spread: Function = lambda step: (2 * step) ** 0.5,
) -> Tensor:  # fmt: skip
    for z in noise:
        x = x + push * step * _slope(energy, x) + spread(step) * z
    return x


def _ebm(
    energy: EnergyFunction, real: Tensor, chains: Tensor, step: Tensor, noise: Tensor,
    read: Function = lambda at_real, at_fake: at_real.mean() - at_fake.mean(),
    **how: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    end = _walk(energy, chains, step, noise, **how)
    return read(energy(real), energy(end)), end


def _with(**how: Any) -> Function:
    return lambda *inputs: _ebm(*inputs, **how)


def _from_start(
    energy: EnergyFunction, real: Tensor, chains: Tensor, step: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    end = _walk(energy, chains, step, noise)
    return energy(real).mean() - energy(chains).mean(), end


def _one_noise(
    energy: EnergyFunction, real: Tensor, chains: Tensor, step: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    same = noise[:1].expand_as(noise)
    return _ebm(energy, real, chains, step, same)


def _one_slope(
    energy: EnergyFunction, real: Tensor, chains: Tensor, step: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    end = chains - len(noise) * step * _slope(energy, chains)
    end = end + (2 * step) ** 0.5 * noise.sum(0)
    return energy(real).mean() - energy(end).mean(), end


class _Net(nn.Module):
    """A trainable energy, (B, 2) -> (B,)."""

    def __init__(self, g: Generator) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(4, 2, generator=g))
        self.out = nn.Parameter(torch.randn(4, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.into.T) @ self.out + x.square().sum(1)


def _both(answer: Function, g: Generator) -> tuple[Any, Any, _Net]:
    net = _Net(g)
    real, chains = torch.randn(2, 6, 2, generator=g)
    noise = torch.randn(3, 6, 2, generator=g)
    inputs = net, real, chains, torch.tensor(0.1), noise
    return answer(*inputs), _ebm(*inputs), net


def _chains_are_data(answer: Function, g: Generator) -> bool:
    (_, end), _, _ = _both(answer, g)
    return not end.requires_grad


def _walk_leaves_nothing(answer: Function, g: Generator) -> bool:
    _, _, net = _both(answer, g)
    return all(weight.grad is None for weight in net.parameters())


def _loss_trains(answer: Function, g: Generator) -> bool:
    (loss, _), (right, _), net = _both(answer, g)
    if not loss.requires_grad:
        return False
    weights = list(net.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    expected = torch.autograd.grad(right, weights)
    return all(
        a is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        for a, b in zip(found, expected, strict=True)
    )


ebm_loss = Exercise(
    "ebm_loss",
    draw=_batch,
    truth=_ebm,
    returns=("loss", "chains"),
    mistakes={
        "the chains walk up the energy: they must go down":
            _with(push=1.0),
        "the 2 under the root of the noise is missing":
            _with(spread=lambda step: step**0.5),
        "the root of the noise's size is missing":
            _with(spread=lambda step: 2 * step),
        "the noise is missing: this is gradient descent":
            _with(spread=lambda step: 0 * step),
        "the other paper's step, half the gradient and the root of the step":
            _with(push=-0.5, spread=lambda step: step**0.5),
        "the noise is not scaled by the step":
            _with(spread=lambda step: 1.0),
        "the gradient is halved, as in the other paper, and the noise is not":
            _with(push=-0.5),
        "the gradient is that of the mean energy: each chain's share is too small":
            lambda e, r, c, s, n: _ebm(e, r, c, s, n, push=-1 / len(c)),
        "the gradient is taken once, where the chains started, for all steps":
            _one_slope,
        "the last step is not taken":
            lambda e, r, c, s, n: _ebm(e, r, c, s, n[:-1]),
        "the chains come back where they started: return where they are now":
            lambda e, r, c, s, n: (_ebm(e, r, c, s, n)[0], c),
        "the same noise is used in every step":
            _one_noise,
        "only one step is taken":
            lambda e, r, c, s, n: _ebm(e, r, c, s, n[:1]),
        "the contrast has the wrong sign: it raises the energy of data":
            _with(read=lambda r, f: f.mean() - r.mean()),
        "the samples' energies are added, where they are raised":
            _with(read=lambda r, f: r.mean() + f.mean()),
        "the samples' term is missing; the energy falls everywhere":
            _with(read=lambda r, f: r.mean()),
        "sums over the batches, where means are asked":
            _with(read=lambda r, f: r.sum() - f.sum()),
        "the contrast is taken where the chains started":
            _from_start,
    },
    properties=(
        Property(
            "its values are right, but the chains still hang on the graph of the "
            "energy; they are data for the next step, so cut them off",
            _chains_are_data,
        ),
        Property(
            "its values are right, but the gradient in the energy's weights is not: "
            "it must flow through E at data and at samples, and not through the walk",
            _loss_trains,
        ),
        Property(
            "its values are right, but the walk leaves gradients in the energy's "
            "weights, as backward does; ask for the gradient in x alone",
            _walk_leaves_nothing,
        ),
    ),
)  # fmt: skip
