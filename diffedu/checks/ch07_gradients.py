"""Checks of chapter 7 that need a gradient: the loss of a bridge, and D-Flow's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from diffedu.checks.machinery import Exercise, Function, Property

Inputs = dict[str, Any]
Model = Callable[[Tensor, Tensor], Tensor]


def _whole(low: int, high: int, g: Generator) -> int:
    return int(torch.randint(low, high, (), generator=g))


# The loss between two data sets


def _random_model(g: Generator) -> Model:
    scale, shift = (0.5 + torch.rand(2, generator=g)).tolist()

    def model(x: Tensor, t: Tensor) -> Tensor:
        if t.shape != x.shape[:1]:
            raise ValueError(f"the model takes t of shape (B,), got {tuple(t.shape)}")
        return torch.tanh(scale * x + (shift * t).reshape(-1, *[1] * (x.dim() - 1)))

    return model


def _images(g: Generator) -> Inputs:
    shape = _whole(5, 9, g), _whole(1, 4, g), 3, 4
    x0, x1 = torch.randn(2, *shape, generator=g)
    t = 0.1 + 0.8 * torch.rand(shape[0], generator=g)
    return {"model": _random_model(g), "x0": x0, "x1": x1, "t": t}


def _loss(
    model: Model, x0: Tensor, x1: Tensor, t: Tensor, look: Function | None = None,
    sign: float = 1.0, told: Function = lambda t: t,
) -> Tensor:  # fmt: skip
    s = t[:, None, None, None]
    x_t = (1 - s) * x0 + s * x1 if look is None else look(x0, x1, s)
    return (model(x_t, told(t)) - sign * (x1 - x0)).square().mean()


def _loss_of_clean(model: Model, x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    s = t[:, None, None, None]
    return (model((1 - s) * x0 + s * x1, t) - x0).square().mean()


def _aims(
    model: Model, x0: Tensor, x1: Tensor, t: Tensor, target: Function,
    power: int = 2, fading: bool = True,
) -> Tensor:  # fmt: skip
    s = t[:, None, None, None]
    x_t = (1 - s) * x0 + s * x1 if fading else x0 + s * x1
    return (model(x_t, t) - target(x0, x1, x_t)).abs().pow(power).mean()


def _one_number(answer: Function, g: Generator) -> bool:
    inputs = _images(g)
    loss = answer(*inputs.values())
    return isinstance(loss, Tensor) and loss.shape == ()


def _trains(answer: Function, g: Generator) -> bool:
    inputs = _images(g)
    weight = torch.ones((), requires_grad=True)
    inputs["model"] = lambda x, t: weight * x
    loss = answer(*inputs.values())
    if not loss.requires_grad:
        return False
    (slope,) = torch.autograd.grad(loss, weight, allow_unused=True)
    return slope is not None and bool(slope != 0)


def _on_vectors(answer: Function, g: Generator) -> bool:
    x0, x1 = torch.randn(2, 6, 3, generator=g)
    t = torch.rand(6, generator=g)
    right = (-(1 - t)[:, None] * x0 - t[:, None] * x1 - (x1 - x0)).square().mean()
    return torch.allclose(answer(lambda x, t: -x, x0, x1, t), right, atol=1e-4)


bridge_loss = Exercise(
    "bridge_loss",
    draw=_images,
    truth=_loss,
    mistakes={
        "the model is shown x1, where x_t belongs":
            lambda *a: _loss(*a, look=lambda x0, x1, s: x1),
        "the model is shown x0, where x_t belongs":
            lambda *a: _loss(*a, look=lambda x0, x1, s: x0),
        "the path runs the other way: x_t must be x0 at t = 0":
            lambda *a: _loss(*a, look=lambda x0, x1, s: s * x0 + (1 - s) * x1),
        "the sign of the velocity is wrong for this direction of time":
            lambda *a: _loss(*a, sign=-1.0),
        "both the path and the velocity run the papers' way, with data at t = 1":
            lambda *a: _loss(
                *a, look=lambda x0, x1, s: s * x0 + (1 - s) * x1, sign=-1.0),
        "the model is told 1 - t":
            lambda *a: _loss(*a, told=lambda t: 1 - t),
        "the target is x0, which makes a denoiser and no velocity":
            _loss_of_clean,
        "the target is x1, where x1 - x0 is asked":
            lambda *a: _aims(*a, lambda x0, x1, x_t: x1),
        "the target is x1 - x_t, the way that is left, where x1 - x0 is asked":
            lambda *a: _aims(*a, lambda x0, x1, x_t: x1 - x_t),
        "the errors are not squared":
            lambda *a: _aims(*a, lambda x0, x1, x_t: x1 - x0, power=1),
        "x0 does not fade: its weight at time t is 1 - t":
            lambda *a: _aims(*a, lambda x0, x1, x_t: x1 - x0, fading=False),
        "the squares are summed, where their mean is asked":
            lambda *a: _loss(*a) * a[1].numel(),
        "the squares of a sample are summed, where the mean is over all elements":
            lambda *a: _loss(*a) * a[1][0].numel(),
    },
    properties=(
        Property(
            "its value is right, but it must be a tensor of shape (); look for "
            ".item() or a missing mean", _one_number),
        Property(
            "its value is right, but its gradient does not reach the model; look for "
            "detach or no_grad", _trains),
        Property("it is right for images, but not for points of shape (B, D)",
                 _on_vectors),
    ),
)  # fmt: skip


# One step of D-Flow


def _source(g: Generator) -> Inputs:
    size, dim, measured = _whole(3, 7, g), _whole(3, 6, g), _whole(1, 3, g)
    into = torch.randn(dim, dim, generator=g)

    def solve(x1: Tensor) -> Tensor:
        return torch.tanh(x1 @ into.to(x1)) + 0.5 * x1

    return {
        "solve": solve,
        "x1": torch.randn(size, dim, generator=g),
        "A": torch.randn(measured, dim, generator=g),
        "y": torch.randn(measured, generator=g),
        "width": 0.4 + torch.rand((), generator=g).item(),
        "rate": 0.05 + 0.1 * torch.rand((), generator=g).item(),
    }


def _steer(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
) -> Tensor:
    with torch.enable_grad():
        start = x1.detach().requires_grad_()
        cost = (solve(start) @ A.T - y).square().sum() / (2 * width**2)
        (slope,) = torch.autograd.grad(cost, start)
    return x1.detach() - rate * slope


def _end_slope(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float
) -> tuple[Tensor, Tensor]:
    x0 = solve(x1)
    return x0, (x0 @ A.T - y) @ A / width**2


def _moves_end(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
) -> Tensor:
    x0, slope = _end_slope(solve, x1, A, y, width)
    return x0 - rate * slope


def _skips_solve(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
) -> Tensor:
    return x1 - rate * _end_slope(solve, x1, A, y, width)[1]


def _scaled(factor: Function) -> Function:
    """The right step with another length: factor(B, M, width) times as long."""

    def answer(
        solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
    ) -> Tensor:
        rate = rate * factor(len(x1), len(y), width)
        return _steer(solve, x1, A, y, width, rate)

    return answer


def _step_alone(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
) -> Tensor:
    return _steer(solve, x1, A, y, width, rate) - x1


def _from_end(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
) -> Tensor:
    return solve(x1) + _step_alone(solve, x1, A, y, width, rate)


def _without_rate(
    solve: Function, x1: Tensor, A: Tensor, y: Tensor, width: float, rate: float
) -> Tensor:
    return _steer(solve, x1, A, y, width, 1.0)


def _repeats(answer: Function, g: Generator) -> bool:
    inputs = _source(g)
    first, second = (answer(*inputs.values()).detach().clone() for _ in range(2))
    return torch.allclose(first, second, atol=1e-4)


def _no_graph(answer: Function, g: Generator) -> bool:
    return not answer(*_source(g).values()).requires_grad


steer = Exercise(
    "steer",
    draw=_source,
    truth=_steer,
    mistakes={
        "the step goes uphill: the cost rises":
            _scaled(lambda B, M, width: -1.0),
        "the cost is averaged over the batch, so that a sample's step depends on how "
        "many others there are": _scaled(lambda B, M, width: 1 / B),
        "the cost is averaged over batch and measurements":
            _scaled(lambda B, M, width: 1 / (B * M)),
        "the cost is averaged over the measurements, where a squared length sums":
            _scaled(lambda B, M, width: 1 / M),
        "the factor one half of the cost is missing":
            _scaled(lambda B, M, width: 2.0),
        "the width is not squared":
            _scaled(lambda B, M, width: width),
        "the width is left out of the cost":
            _scaled(lambda B, M, width: width**2),
        "the gradient stops at the end of the solve: the source moves as if it were "
        "x0": _skips_solve,
        "the end x0 is moved and returned, where the source is asked":
            _moves_end,
        "the source is used for the cost without being solved":
            lambda solve, *rest: _steer(lambda x: x, *rest),
        "the end of the solve is returned, where the source is asked":
            lambda solve, *rest: solve(_steer(solve, *rest)),
        "the step is taken from the end x0, where it must start from the source":
            _from_end,
        "only the step is returned, where the moved source is asked":
            _step_alone,
        "the rate is left out":
            _without_rate,
    },
    properties=(
        Property("its value is right, but it still carries a gradient; detach it, or "
                 "the graph grows with every step", _no_graph),
        Property("a second call with the same x1 gives another step: backward() adds "
                 "to x1.grad; detach x1 first, or use torch.autograd.grad", _repeats),
    ),
)  # fmt: skip
