"""The one broadcasting helper, and the source of random numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Make one value a sample broadcast against a batch.

    Args:
        value: shape () or (B,).
        like: shape (B, ...).

    Returns:
        shape () unchanged, or (B, 1, ..., 1) with as many axes as `like`.

    Raises:
        ValueError: if `value` has other axes, or another batch size.
    """
    if value.dim() == 0:
        return value
    if value.shape != like.shape[:1]:
        raise ValueError(
            f"expected one value a sample, shape () or ({like.shape[0]},), "
            f"for a batch of shape {tuple(like.shape)}; got {tuple(value.shape)}"
        )
    return value.reshape(-1, *(1,) * (like.dim() - 1))


def normal_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of x's shape (any), dtype and device.

    A generator of another device draws there, and the result is moved: so a CPU
    generator gives the same noise for a model on any device.
    """
    device = generator.device if generator is not None else x.device
    noise = torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator)
    return noise.to(x.device)


def batch_mean(x: Tensor) -> Tensor:
    """The mean over every axis but the first: (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)
