"""The divergence of a vector field: exactly, or from random probes.

It says how fast the field makes a small volume grow, and is all that a density needs
to be carried along an ODE.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.errors import lookup, require
from diffedu.tensors import normal_like

Field = Callable[[Tensor], Tensor]


def _signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """+1 or -1 with equal chance, of x's shape."""
    device = generator.device if generator is not None else x.device
    bits = torch.randint(2, x.shape, device=device, generator=generator)
    return (2 * bits - 1).to(x)


PROBES = {"rademacher": _signs, "gaussian": normal_like}


def draw_probes(
    x: Tensor,
    count: int = 1,
    kind: str = "rademacher",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Random vectors xi with E[xi xi^T] = I: shape (count, *x.shape).

    Args:
        x: a batch of the shape, dtype and device wanted, (B, ...).
        count: how many for each sample.
        kind: rademacher (random signs) or gaussian.
        generator: source of randomness.

    Raises:
        ValueError: for an unknown kind, or a count below 1.
    """
    draw = lookup(PROBES, kind, "kind of probe")
    require(count >= 1, f"Hutchinson's estimate needs at least 1 probe, got {count}")
    return draw(x.new_empty(count, *x.shape), generator)


def _watched(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """x, ready for derivatives, and the field there; both of shape (B, ...)."""
    x = x.detach().requires_grad_()
    u = field(x)
    if u.shape != x.shape:
        raise ValueError(
            f"a field answers the shape of x, {tuple(x.shape)}; got {tuple(u.shape)}"
        )
    require(u.requires_grad, "the field's answer has no gradient in x; was it detached")
    return x, u


def exact_divergence(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """The field at x and its divergence sum_i du_i / dx_i, by D passes backwards.

    Args:
        field: maps (B, ...) to the same shape, sample by sample.
        x: where, shape (B, ...).

    Returns:
        u(x), shape of x, and the divergence, shape (B,), both without gradient.

    Raises:
        ValueError: if the field answers another shape, or nothing that depends on x.
    """
    with torch.enable_grad():
        x, u = _watched(field, x)
        total = x.new_zeros(len(x))
        flat = u.flatten(1)
        for i in range(flat.shape[1]):
            row = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0]
            total = total + row.flatten(1)[:, i]
    return u.detach(), total


def hutchinson_divergence(
    field: Field, x: Tensor, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """The field at x and xi^T (du/dx) xi for each probe xi, whose mean is the trace.

    Args:
        field: maps (B, ...) to the same shape, sample by sample.
        x: where, shape (B, ...).
        probes: shape (P, *x.shape), as from `draw_probes`.

    Returns:
        u(x), shape of x, and one estimate a probe, shape (P, B), without gradient.

    Raises:
        ValueError: as `exact_divergence`, or for probes of another shape.

    Source: (arXiv 1810.01367, section 3.1; arXiv 2011.13456, appendix D.2).
    """
    require(
        probes.shape[1:] == x.shape and len(probes) > 0,
        f"probes need shape (P, *x.shape) = (P, {', '.join(map(str, x.shape))}), got "
        f"{tuple(probes.shape)}",
    )
    with torch.enable_grad():
        x, u = _watched(field, x)
        rows = [torch.autograd.grad(u, x, xi, retain_graph=True)[0] for xi in probes]
    each = torch.stack(rows) * probes
    return u.detach(), each.flatten(2).sum(2)
