"""A figure's claim: checked where it is drawn, printed, and recorded by the build.

`claim` asserts, `report` only prints. Where a claim rests on training runs that are
too long for a reader's machine, `recorded` reads their shipped log.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffedu.errors import lookup, require, unknown

Number = float | int | bool | str | torch.Tensor | Sequence[float]
T = TypeVar("T")

RECORDED = Path(__file__).parent / "recorded"
SUMS = "sha256.json"


class ClaimFailed(AssertionError):
    """A claim that does not hold on this run."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def claim(figure: str, statement: str, holds: bool, **values: Number) -> None:
    """Print a figure's claim with its numbers; raise if it is false.

    Args:
        figure: an id of the registry ("F14"), or a chapter's ("ch00").
        statement: the claim in words, one sentence.
        holds: whether it held on this run; a bool or a tensor of one element.
        values: the numbers it rests on, a negative control among them.

    Raises:
        ClaimFailed: if `holds` is false.
        ValueError: if the figure is unknown or a value is NaN.
    """
    truth = bool(holds)
    plain = _announce(figure, statement, "claim" if truth else "fails", values)
    _record(figure, statement, truth, plain)
    if not truth:
        raise ClaimFailed(f"{figure}: this does not hold: {statement} {_words(plain)}")


def report(figure: str, statement: str, **values: Number) -> None:
    """Print what a figure shows without asserting it; arguments as of `claim`."""
    plain = _announce(figure, statement, "report", values)
    _record(figure, statement, None, plain)


def budget(laptop: T, full: T) -> T:
    """The first value, or the second where DIFFEDU_BUDGET is "full"."""
    name = os.environ.get("DIFFEDU_BUDGET") or "laptop"
    return lookup({"laptop": laptop, "full": full}, name, "budget")


def device() -> torch.device:
    """The CPU, or the device that DIFFEDU_DEVICE names."""
    chosen = torch.device(os.environ.get("DIFFEDU_DEVICE") or "cpu")
    available = chosen.type != "cuda" or torch.cuda.is_available()
    require(available, "the device cuda was asked for, but torch finds none; try cpu")
    return chosen


def recorded(name: str, folder: Path = RECORDED) -> dict[str, Any]:
    """The shipped log of a recorded run, after its checksum has been compared.

    Args:
        name: the run's name, as "f06".
        folder: where logs and their checksums lie.

    Returns:
        the log: figure, recipe, seeds, hardware, torch, results.

    Raises:
        ValueError: if no such run is shipped, or its file is missing or changed.
    """
    sums = _checksums(folder)
    if name not in sums:
        hint = "" if sums else " (none is shipped here)"
        error = unknown(name, sums.keys(), "recorded run")
        raise ValueError(f"{error}{hint}")
    path = folder / f"{name}.json"
    require(path.is_file(), f"{path} is missing; fetch the repository's files again")
    _require_sum(path, sums[name])
    return json.loads(path.read_text(encoding="utf-8"))


def save_recorded(
    name: str,
    *,
    figure: str,
    recipe: dict[str, Any],
    seeds: Sequence[int],
    results: dict[str, Any],
    folder: Path = RECORDED,
) -> Path:
    """Write the log of a recorded run, and its checksum beside the others.

    Args:
        name: the run's name, as "f06".
        figure: the id of the figure that rests on it.
        recipe: what was run: net, steps, batch, rate.
        seeds: the seeds of its runs.
        results: what was measured; numbers, strings and lists of them.
        folder: where logs and their checksums lie.

    Returns:
        the path of the log.
    """
    _require_figure(figure)
    log = {
        "figure": figure,
        "recipe": recipe,
        "seeds": list(seeds),
        "hardware": _hardware(),
        "torch": torch.__version__,
        "results": results,
    }
    path = folder / f"{name}.json"
    write_atomically(path, _json(log))
    sums = _checksums(folder) | {name: _sha256(path)}
    write_atomically(folder / SUMS, _json(dict(sorted(sums.items()))))
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file beside its place and move it in, so that it is never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _announce(
    figure: str, statement: str, kind: str, values: dict[str, Number]
) -> dict[str, Any]:
    _require_figure(figure)
    plain = {name: _plain(name, value) for name, value in values.items()}
    mark = {"claim": "✓", "fails": "✗", "report": "·"}[kind]
    print(f"{figure} {mark} {statement}")
    if plain:
        print(f"    {_words(plain)}")
    return plain


def _require_figure(figure: str) -> None:
    from diffedu.figures import CHAPTERS, FIGURES

    if figure not in FIGURES and figure not in CHAPTERS:
        raise unknown(figure, [*FIGURES, *CHAPTERS], "figure")


def _plain(name: str, value: Number) -> Any:
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(name, each) for each in value]
    if isinstance(value, bool | str):
        return value
    require(
        isinstance(value, numbers.Real),
        f"{name} is a {type(value).__name__}; a claim takes numbers, strings, or lists",
        TypeError,
    )
    require(value == value, f"{name} is NaN; a claim on it would mean nothing")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _words(plain: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {_word(value)}" for name, value in plain.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_word, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _record(
    figure: str, statement: str, holds: bool | None, values: dict[str, Any]
) -> None:
    path = os.environ.get("DIFFEDU_RECORD")
    if not path:
        return
    entry = dict(figure=figure, statement=statement, holds=holds, numbers=values)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _require_sum(path: Path, expected: str) -> None:
    require(
        _sha256(path) == expected,
        f"{path} is not the file that was recorded (its checksum differs); "
        "fetch it again, or make it again with DIFFEDU_BUDGET=full",
    )


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
