"""The network for points: a residual multilayer perceptron, and energies made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffedu.errors import lookup, require
from diffedu.nets.conditions import Condition, require_input, require_positive


class MLPBlock(nn.Module):
    """h + W2 silu(W1 h + condition): one hidden layer around which h passes.

    Args:
        width: number of features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Map features (B, width) and conditions (B, width) to features (B, width)."""
        return h + self.out(nn.functional.silu(self.into(h) + condition))


class MLP(nn.Module):
    """A residual network for vectors, called as `net(x, t, label=..., keep=...)`.

    Its hidden states are the outputs of the modules named by `blocks()`.

    Args:
        dim: length of x.
        width: number of hidden features.
        depth: number of blocks.
        classes: number of classes, or None for a network without labels.
        outputs: length of the answer; None means `dim`.

    Raises:
        ValueError: if one of the numbers is not a whole one above 0.
    """

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 4,
        classes: int | None = None,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        outputs = dim if outputs is None else outputs
        require_positive(dim=dim, width=width, depth=depth, outputs=outputs)
        self.dim, self.outputs = dim, outputs
        self.condition = Condition(width, classes)
        self.stem = nn.Linear(dim, width)
        self.block = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(width, outputs))

    @property
    def classes(self) -> int | None:
        """The number of classes, None for a network without labels."""
        return self.condition.classes

    def blocks(self) -> list[str]:
        """Names of the modules whose outputs are the hidden states, in order."""
        return [f"block.{i}" for i in range(len(self.block))]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Answer one vector a sample.

        Args:
            x: shape (B, dim).
            t: time, or any real number that says how noisy x is, (B,) or ().
            label: class numbers, (B,) or (), int64; -1 or None is unconditional.
            keep: who keeps its label, (B,) bool.

        Returns:
            shape (B, outputs).

        Raises:
            ValueError: if a shape, dtype, device or class number does not fit.
        """
        require_input(x, (self.dim,), self.stem.weight)
        condition = self.condition(x, t, label, keep)
        h = self.stem(x)
        for block in self.block:
            h = block(h, condition)
        return self.head(h)


def scalar_energy(net: nn.Module, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    """E = the network's one output: (B, 1) -> (B,)."""
    out = net(x, t, **condition)
    require(
        out.shape == (len(x), 1),
        f'form "scalar" needs a network with one output a sample, got shape '
        f'{tuple(out.shape)}; build it with outputs=1, or take form="squared"',
    )
    return out[:, 0]


def squared_energy(net: nn.Module, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
    """E = |x - f(x, t)|^2 / 2 for a network f of x's shape: (B,)."""
    out = net(x, t, **condition)
    require(
        out.shape == x.shape,
        f'form "squared" needs a network that answers x\'s shape {tuple(x.shape)}, '
        f'got {tuple(out.shape)}; leave outputs= out, or take form="scalar"',
    )
    return (x - out).square().flatten(1).sum(1) / 2


FORMS = {"scalar": scalar_energy, "squared": squared_energy}
SIGNS = {"score": -1.0, "eps": 1.0}


class Energy(nn.Module):
    """A network that is the gradient of an energy, so that its field has no curl.

    It is called like any network and answers x's shape. Gradients are turned on
    inside, so samplers that run without them can use it.

    With `predicts="score"` it answers -dE/dx, and log p_t = -E + const. With
    `predicts="eps"` it answers dE/dx, and log p_t = -E / sigma(t) + const: its
    size is about 1 at every noise level, which trains better. Give the `Denoiser`
    around it the same word.

    Args:
        inner: the network that E is made of, called as `inner(x, t, **condition)`.
        form: "scalar", E is its single output; "squared", E = |x - inner(x, t)|^2 / 2.
        predicts: "score" or "eps".

    Raises:
        ValueError: if `form` or `predicts` is unknown.
    """

    def __init__(
        self, inner: nn.Module, form: str = "scalar", predicts: str = "score"
    ) -> None:
        super().__init__()
        self.inner, self.form = inner, form
        self.energy_of = lookup(FORMS, form, "form")
        self.sign = lookup(SIGNS, predicts, "predicts")

    def energy(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The energy E(x, t).

        Args:
            x: shape (B, ...).
            t: shape (B,) or ().
            condition: handed to the inner network by name.

        Returns:
            shape (B,).

        Raises:
            ValueError: if the inner network's answer does not fit the form.
        """
        return self.energy_of(self.inner, x, t, **condition)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """The gradient of E with the sign of what is predicted.

        Args:
            x: shape (B, ...).
            t: shape (B,) or ().
            condition: handed to the inner network by name.

        Returns:
            x's shape; differentiable again where gradients are on.

        Raises:
            ValueError: if the inner network's answer does not fit the form.
            RuntimeError: in inference mode, where no gradient exists.
        """
        require(
            not torch.is_inference_mode_enabled(),
            "an Energy is a gradient, which inference_mode forbids; use no_grad",
            RuntimeError,
        )
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if training and x.requires_grad else x.detach().requires_grad_()
            energy = self.energy(x, t, **condition).sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=training)
        return self.sign * slope
