"""Five 2-D toys: eight_gaussians, moons, checkerboard, swiss_roll, pinwheel.

Each has mean zero and a standard deviation of 0.5 to 0.9 along each axis, so that
one schedule and one network serve them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffedu.errors import lookup, require

FLOATS = (torch.float32, torch.float64)


class _Draws:
    """`count` uniform or normal values at a time, from one generator."""

    def __init__(
        self, count: int, generator: torch.Generator | None, dtype: torch.dtype
    ):
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        require(whole, f"n is {count!r}; it must be a whole number from 1 up")
        require(dtype in FLOATS, f"dtype {dtype} is not float32 or float64")
        require(
            generator is None or isinstance(generator, torch.Generator),
            f"generator is {generator!r}; pass a torch.Generator, for example "
            "torch.Generator().manual_seed(0)",
            TypeError,
        )
        device = generator.device if generator is not None else None
        self.count = count
        self._how = {"generator": generator, "dtype": dtype, "device": device}

    def uniform(self, *columns: int) -> Tensor:
        """Uniform numbers in [0, 1), (count, *columns)."""
        return torch.rand(self.count, *columns, **self._how)

    def normal(self, *columns: int) -> Tensor:
        """Standard normal numbers, (count, *columns)."""
        return torch.randn(self.count, *columns, **self._how)

    def choice(self, options: int) -> Tensor:
        """Whole numbers below `options`, (count,), in the float dtype."""
        return (self.uniform() * options).floor().clamp_(max=options - 1)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def eight_gaussians_parameters() -> tuple[Tensor, Tensor, Tensor]:
    """The exact mixture behind `eight_gaussians`, for `GaussianMixture(*parameters)`.

    Returns:
        weights (8,), means (8, 2) on the unit circle, stds (8,) of 0.1, all float64.
    """
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    weights = torch.full((8,), 1 / 8, dtype=torch.float64)
    return weights, _polar(1.0, angles), torch.full_like(weights, 0.1)


def eight_gaussians(
    n: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Eight round spots on the unit circle, std 0.1 each; 0.71 along each axis.

    Args:
        n: how many points.
        generator: the source of random numbers; the points lie on its device.
        dtype: float32 or float64.

    Returns:
        points (n, 2).

    Raises:
        ValueError, TypeError: if n, the generator or the dtype is not such.
    """
    draw = _Draws(n, generator, dtype)
    angle = draw.choice(8) * (math.pi / 4)
    return _polar(1.0, angle) + 0.1 * draw.normal(2)


def moons(
    n: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Two interleaved half circles of radius 1 with noise 0.08; std (0.87, 0.50).

    Args, Returns, Raises: as `eight_gaussians`.
    """
    draw = _Draws(n, generator, dtype)
    upper = _polar(1.0, draw.uniform() * math.pi)
    lower = torch.stack([1 - upper[:, 0], 0.5 - upper[:, 1]], -1)
    points = torch.where(draw.choice(2)[:, None] == 0, upper, lower)
    return points - points.new_tensor([0.5, 0.25]) + 0.08 * draw.normal(2)


def checkerboard(
    n: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform on the eight dark squares of a 4x4 board over [-1, 1]^2; std 0.58.

    Square (column i, row j), counted from (-1, -1), is dark where i + j is even.
    The log-density there is -log 2, elsewhere minus infinity.

    Args, Returns, Raises: as `eight_gaussians`.
    """
    draw = _Draws(n, generator, dtype)
    column, pair = draw.choice(4), draw.choice(2)
    row = 2 * pair + column.remainder(2)
    return (torch.stack([column, row], -1) + draw.uniform(2)) / 2 - 1


def swiss_roll(
    n: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A spiral of one and a half turns, radius 0.47 to 1.41, noise 0.03; std 0.67.

    The angle is uniform, so the outer turn is thinner. The mean is taken off exactly.

    Args, Returns, Raises: as `eight_gaussians`.
    """
    draw = _Draws(n, generator, dtype)
    angle = (1.5 + 3 * draw.uniform()) * math.pi
    mean = angle.new_tensor([2.0, 2 / (3 * math.pi)])
    return (_polar(angle, angle) - mean) / 10 + 0.03 * draw.normal(2)


def pinwheel(
    n: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Five bent arms: radius 1 with std 0.3, width 0.1, twisted by radius; std 0.74.

    Args, Returns, Raises: as `eight_gaussians`.
    """
    draw = _Draws(n, generator, dtype)
    radius, across = 1 + 0.3 * draw.normal(), 0.1 * draw.normal()
    angle = draw.choice(5) * (2 * math.pi / 5) + 0.7 * radius
    along, side = _polar(radius, angle), _polar(across, angle + math.pi / 2)
    return along + side


TOYS: dict[str, Callable[..., Tensor]] = {
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "checkerboard": checkerboard,
    "swiss_roll": swiss_roll,
    "pinwheel": pinwheel,
}


def sample(
    name: str,
    n: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Points of the toy of that name: `sample("moons", 1000)`.

    Args:
        name: eight_gaussians, moons, checkerboard, swiss_roll or pinwheel.
        n: how many points.
        generator: the source of random numbers; the points lie on its device.
        dtype: float32 or float64.

    Returns:
        points (n, 2).

    Raises:
        ValueError, TypeError: if the name is unknown, or as `eight_gaussians`.
    """
    return lookup(TOYS, name, "toy")(n, generator, dtype)
