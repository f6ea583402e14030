"""Files: safetensors written so that a crash or a full disk cannot break an older one.

Weights travel in half precision with a card that says what they are; checkpoints of
a training hold tensors and plain values, nothing that has to be unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from diffedu.errors import require, require_finite

MARK = "diffedu"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside, flush to the disk, then rename: old or new, never half a file.

    Args:
        path: the file; its folder is made if it is missing.
        data: its whole content.

    Raises:
        OSError: if the disk is full or the place cannot be written; what stood
            at `path` before is then still there.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        discard(beside)
        raise OSError(
            error.errno,
            f"could not write {path} ({len(data) / 1e6:.1f} MB): {error.strerror}; "
            "an earlier file of this name is untouched; free some space or name "
            "another place",
        ) from error
    flush_folder(path.parent)


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass  # the error that brought us here is the one to report


def flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets folders be flushed."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping
) -> None:
    """Write named tensors (any shapes) and a JSON-able description into one file."""
    own = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
    write_atomically(path, to_bytes(own, {MARK: json.dumps(about)}))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict]:
    """Read what `write_tensors` wrote.

    Args:
        path: the file.

    Returns:
        the tensors by name, on the CPU, and the description ({} if it has none).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken, or no safetensors file.
    """
    require(Path(path).is_file(), f"there is no file {path}", FileNotFoundError)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads((file.metadata() or {}).get(MARK, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is broken or not a safetensors file ({error}); move it away and "
            "make or fetch it again"
        ) from error


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A JSON-able twin of nested dicts and lists, their tensors put into `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[k, pack(v, tensors, f"{name}.{k}")] for k, v in value.items()]
        return {"pairs": pairs}
    if isinstance(value, (list, tuple)):
        return [pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]
    plain = value is None or isinstance(value, (bool, int, float, str))
    require(
        plain,
        f"{name} holds a {type(value).__name__}, but a checkpoint takes tensors, "
        "numbers, strings, and dicts and lists of them",
        TypeError,
    )
    return value


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given (tuples come back as lists)."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {k: unpack(v, tensors) for k, v in value["pairs"]}
    return value


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a module, in the module's own precision.

    Raises:
        ValueError: if names or shapes differ; it lists the first few that do.
    """
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - weights.keys()]
    wrong += [f"{name} is not in the module" for name in weights.keys() - own.keys()]
    wrong += [
        f"{name} has shape {tuple(weights[name].shape)}, the module {tuple(x.shape)}"
        for name, x in own.items()
        if name in weights and weights[name].shape != x.shape
    ]
    few = "; ".join(sorted(wrong)[:3])
    require(
        not wrong,
        f"{source} does not fit this module in {len(wrong)} places: {few}; build the "
        "module with the options it was saved with",
    )
    module.load_state_dict(dict(weights))


def save(
    module: nn.Module,
    path: str | os.PathLike[str],
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a module's weights, parameters in half precision, with a card.

    Args:
        module: what to save; its buffers keep their precision.
        path: the file, usually ending in .safetensors.
        card: JSON-able facts about the weights (recipe, data, seed, ...).
        dtype: precision of the parameters in the file.

    Raises:
        ValueError: if a weight is not finite, or too large for `dtype`.
        TypeError: if the card is not JSON-able.
        OSError: if the file cannot be written.
    """
    tensors = dict(module.state_dict())
    for name, parameter in module.named_parameters(remove_duplicate=False):
        require_finite(parameter, f"weight {name}")
        tensors[name] = parameter.detach().to(dtype)
        require_finite(tensors[name], f"weight {name} as {dtype}")
    write_tensors(path, tensors, {"kind": "weights", "card": dict(card or {})})


def load(module: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read weights that `save` wrote into a module, in the module's own precision.

    Args:
        module: built with the options of the saved one.
        path: the file.

    Returns:
        the card, {} if the file has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken, of another kind, or does not fit.
    """
    tensors, about = read_tensors(path)
    require(
        about.get("kind", "weights") == "weights",
        f"{path} is the checkpoint of a training, not weights; hand it to "
        "training.fit as checkpoint=, then training.save(state.ema, ...)",
    )
    load_weights(module, tensors, str(path))
    return about.get("card", {})
