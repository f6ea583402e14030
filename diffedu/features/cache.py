"""Features kept on disk under a name made of everything they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffedu.errors import require
from diffedu.training.files import read_tensors, write_tensors

END = "generator"  # the generator's state after the noise was drawn


class Shelf:
    """Where one answer is looked up and kept; without a folder it does nothing.

    Args:
        folder: the folder, or None.
        generator: source of the noise; its state is part of the name, and a hit
            leaves it where a fresh run would have.
        noise: recorded noise, any shape, or None.

    Raises:
        ValueError: if the noise is neither given nor repeatable.
    """

    def __init__(
        self,
        folder: str | Path | None,
        generator: torch.Generator | None,
        noise: Tensor | None,
    ) -> None:
        self.folder, self.generator, self.path = folder, generator, None
        require(
            folder is None or noise is not None or generator is not None,
            "a kept answer must be repeatable: give generator= or noise= with cache=",
        )

    def find(self, denoise: nn.Module, told: Any) -> dict[str, Tensor] | None:
        """The features (N, ...) of such a request, or None if they are not there."""
        if self.folder is None:
            return None
        state = None if self.generator is None else self.generator.get_state()
        name = fingerprint([denoise, told, state])
        self.path = Path(self.folder) / f"{name}.safetensors"
        if not self.path.is_file():
            return None
        features, _ = read_tensors(self.path)
        end = features.pop(END)
        if self.generator is not None:
            self.generator.set_state(end)
        return features

    def keep(self, features: Mapping[str, Tensor]) -> None:
        """Write features (N, ...) beside and move them in, never half a file."""
        if self.path is None:
            return
        end = torch.empty(0) if self.generator is None else self.generator.get_state()
        write_tensors(self.path, dict(features) | {END: end}, {"kind": "features"})


def fingerprint(value: Any) -> str:
    """32 hex digits made of the content of nested tensors, modules and plain values."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:32]


def _feed(digest: Any, value: Any) -> None:
    """Add one value; each kind goes in with its name, so that kinds differ."""
    digest.update(f"{type(value).__name__}(".encode())
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, nn.Module):
        _feed(digest, [value.state_dict(), _options(value)])
    elif isinstance(value, Mapping):
        for key in value:
            _feed(digest, [key, value[key]])
    elif isinstance(value, (list, tuple)):
        for each in value:
            _feed(digest, each)
    else:
        digest.update(repr(value).encode())
    digest.update(b")")


def _options(module: nn.Module) -> list[tuple[str, str]]:
    """What a module and its parts were built with besides their weights: as text."""
    return [
        (f"{name}.{key}", repr(option))
        for name, part in module.named_modules()
        for key, option in sorted(vars(part).items())
        if not key.startswith("_") and _plain(option)
    ]


def _plain(option: Any) -> bool:
    """Whether an option says all it is by its text: numbers, words, schedules."""
    return " at 0x" not in repr(option)
