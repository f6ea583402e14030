"""What a reader's function may return, made comparable: tensors in float64.

Tensors, numbers, NumPy arrays, and tuples, lists and dicts of them are taken apart
into named parts; whatever way a right answer is packed, its parts are the same.
"""

from __future__ import annotations

import copy
import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Parts = dict[str, Tensor]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """The value with its floating tensors (any shape) and modules in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(dtype)
    if type(value) in (tuple, list):
        return type(value)(cast(each, dtype) for each in value)
    if type(value) is dict:
        return {name: cast(each, dtype) for name, each in value.items()}
    return value


def parts(value: Any, names: tuple[str, ...] = (), label: str = "") -> Parts:
    """The tensors (any shape) of a result by label, in float64 or complex128.

    Args:
        value: what a function returned.
        names: what to call the parts of an outermost tuple or list.
        label: where in the result this value stands.

    Returns:
        one tensor a part, labelled "", "mean" or "[0]['x']".

    Raises:
        TypeError: if something in it is neither tensor, number, nor a box of them.
    """
    if isinstance(value, Tensor | np.ndarray | numbers.Number | np.generic):
        return {label: _tensor(value)}
    if isinstance(value, dict):
        inner = {f"{label}[{key!r}]": each for key, each in value.items()}
    elif isinstance(value, tuple | list):
        named = dict(enumerate(names)) if not label else {}
        inner = {named.get(i, f"{label}[{i}]"): each for i, each in enumerate(value)}
    else:
        raise TypeError(f"{kind(value)} can't be compared")
    return {
        k: t for place, each in inner.items() for k, t in parts(each, (), place).items()
    }


def _tensor(value: Any) -> Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def kind(value: Any) -> str:
    """What a value is, in words: "a tensor of shape (5, 3)", "a tuple of 2"."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, numbers.Number):
        return "a number"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict with keys {', '.join(map(repr, value))}"
    return f"a {type(value).__name__}"


def close(a: Tensor, b: Tensor, tolerance: float, relative: bool = False) -> bool:
    """Whether two tensors (any shape) agree, up to a size of one against none.

    Args:
        a: what was given.
        b: what is compared with; its largest value sets the scale.
        tolerance: largest difference in units of that scale.
        relative: measure each element by itself instead.
    """
    if a.shape != b.shape and not (a.numel() == b.numel() == 1):
        return False
    a, b = a.reshape(b.shape), b
    if a.is_complex() != b.is_complex():
        return False
    known = b.abs()[torch.isfinite(b)]
    scale = float(known.max()) if known.numel() and float(known.max()) > 0 else 1.0
    atol = 0.0 if relative else tolerance * scale
    return torch.allclose(a, b, rtol=tolerance, atol=atol, equal_nan=True)


def same(a: Any, b: Any) -> bool:
    """Whether two inputs are equal; what can't be compared counts as equal."""
    try:
        first, second = parts(a), parts(b)
    except (TypeError, ValueError, RuntimeError):
        return True
    return first.keys() == second.keys() and all(
        first[k].shape == second[k].shape
        and torch.allclose(first[k], second[k], rtol=0, atol=0, equal_nan=True)
        for k in first
    )


def sizes(inputs: dict[str, Any]) -> set[int]:
    """Every count a sum or mean over the inputs could run over."""
    found: set[int] = set()
    for value in inputs.values():
        if isinstance(value, Tensor):
            found |= {*value.shape, value.numel()}
            found |= {value.numel() // n for n in value.shape if n}
        elif isinstance(value, int):
            found.add(value)
    return found - {0, 1}
