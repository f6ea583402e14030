"""What every metric asks of its input, and the precision it works in.

Features are (N, D), one row a sample. Sums over pairs cancel, so they are taken in
float64: where the features lie, or on the CPU for devices that have no float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import require, require_finite, require_same_device


def check_features(x: Tensor, name: str, least: int = 2) -> None:
    """Raise unless x is a finite floating-point tensor (N, D) with N >= least.

    Args:
        x: features, shape (N, D).
        name: what the error calls them.
        least: the fewest samples that the metric is defined for.

    Raises:
        TypeError: if x is no tensor, or not of a floating-point dtype.
        ValueError: if its shape is not (N, D), N is too small, or a value not finite.
    """
    check_tensor(x, name)
    require(
        x.dim() == 2 and x.shape[1] > 0,
        f"{name} has shape {tuple(x.shape)}; features are (N, D), one row a sample: "
        "try .flatten(1)",
    )
    require(
        len(x) >= least,
        f"{name} has {len(x)} samples; this metric needs at least {least}",
    )
    require_finite(x, name)


def check_tensor(x: Tensor, name: str) -> None:
    """Raise TypeError unless x (any shape) is a floating-point tensor."""
    require(
        isinstance(x, Tensor),
        f"{name} is a {type(x).__name__}, not a tensor; try torch.as_tensor",
        TypeError,
    )
    require(
        x.is_floating_point(),
        f"{name} has dtype {x.dtype}; a floating-point tensor is needed: try .float()",
        TypeError,
    )


def check_pair(
    a: Tensor, b: Tensor, names: str = "a and b", least: int = 2, paired: bool = False
) -> None:
    """Raise unless two sets of features can be compared.

    Args:
        a, b: features, shapes (N, D) and (M, D); if `paired`, (N, D) and (N, E): row
            i of both describes the same sample.
        names: what the errors call them, as "real and fake".
        least: the fewest samples of either.
        paired: whether rows belong together.

    Raises:
        TypeError, ValueError: as `check_features`; also if D (or, paired, N) differs,
            or the two lie on different devices.
    """
    first, second = names.split(" and ")
    check_tensor(a, first)
    check_tensor(b, second)
    require_same_device(a, b, names)
    check_features(a, first, least)
    check_features(b, second, least)
    axis, what = (0, "rows") if paired else (1, "columns")
    require(
        a.shape[axis] == b.shape[axis],
        f"{first} has {a.shape[axis]} {what} but {second} has {b.shape[axis]}; "
        + ("row i of both must be the same sample" if paired else "D must be equal"),
    )


def double(x: Tensor) -> Tensor:
    """x (any shape) in float64, on the CPU if its device has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision (any shape) made float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def like_input(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The result (any shape) in the inputs' dtype and on their device."""
    return value.to(a.device, torch.promote_types(a.dtype, b.dtype))


def check_neighbours(k: int, n: int) -> None:
    """Raise ValueError unless 1 <= k < n, for n samples."""
    require(
        isinstance(k, int) and 1 <= k < n,
        f"k is {k} with {n} samples; a sample has {n - 1} neighbours: "
        f"take k from 1 to {n - 1}",
    )


def draw_rows(x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n rows of x (N, ...), drawn without replacement on the generator's device."""
    device = generator.device if generator is not None else "cpu"
    rows = torch.randperm(len(x), generator=generator, device=device)[:n]
    return x[rows.to(x.device)]
