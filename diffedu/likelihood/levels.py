"""Data on levels, such as pixels: a density needs them spread over their bins."""

from __future__ import annotations

import torch
from torch import Tensor

from diffedu.errors import require


def dequantize(
    x0: Tensor, bin_width: float, generator: torch.Generator | None = None
) -> Tensor:
    """x0 with uniform noise over its bin, so that levels become a density.

    The mean of -log p of the result, plus log(1 / bin_width) an element, bounds
    -log P of the levels from above.

    Args:
        x0: data on levels, shape (B, ...).
        bin_width: the distance of two neighbouring levels (1/8 for the digits).
        generator: source of the noise.

    Source: (arXiv 1511.01844).
    """
    require(bin_width > 0, f"bin_width must be above 0, got {bin_width}")
    device = generator.device if generator is not None else x0.device
    u = torch.rand(x0.shape, dtype=x0.dtype, device=device, generator=generator)
    return x0 + bin_width * (u.to(x0.device) - 0.5)
