"""Errors that say what was given, what is accepted, and what to try.

Every room of the library raises through these few functions, so that a typing
mistake is answered in the same words everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor


def require(condition: bool, message: str, error: type[Exception] = ValueError) -> None:
    """Raise `error(message)` unless the condition holds."""
    if not condition:
        raise error(message)


def unknown(name: object, accepted: Collection[str], what: str) -> ValueError:
    """The error for a name that is not in `accepted`, with the nearest name to try."""
    near = difflib.get_close_matches(str(name), list(accepted), n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"accepted: {', '.join(accepted)}"
    return ValueError(f'{what} "{name}" is unknown; {hint}')


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`, or a ValueError that suggests the nearest known name."""
    if name not in table:
        raise unknown(name, table.keys(), what)
    return table[name]


def capturing() -> bool:
    """True while a CUDA graph is captured: no value may be read then."""
    # nothing is captured before CUDA is started, and that is quick to ask
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def require_finite(x: Tensor, what: str) -> None:
    """Raise ValueError if the tensor (any shape) holds NaN or infinity."""
    if capturing() or bool(torch.isfinite(x).all()):
        return
    bad = int((~torch.isfinite(x)).sum())
    raise ValueError(
        f"{what} holds {bad} values of {x.numel()} that are NaN or infinite; "
        "look at where they first appear before going on"
    )


def require_same_shape(a: Tensor, b: Tensor, names: str) -> None:
    """Raise ValueError unless two tensors have one shape; `names` as "x0 and noise"."""
    if a.shape != b.shape:
        first, second = names.split(" and ")
        raise ValueError(
            f"{first} has shape {tuple(a.shape)} but {second} has {tuple(b.shape)}; "
            "they must be equal"
        )


def require_same_device(a: Tensor, b: Tensor, names: str) -> None:
    """Raise ValueError unless two tensors (any shape) lie on one device."""
    if a.device != b.device:
        first, second = names.split(" and ")
        raise ValueError(
            f"{first} is on {a.device} but {second} is on {b.device}; "
            f"move one of them with .to({str(a.device)!r})"
        )
