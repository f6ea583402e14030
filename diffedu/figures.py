"""The registry of figures: what each one claims, and how to make it again.

A figure belongs to the chapter that draws it: its notebook is run, and the pictures
and numbers of the cells that carry the figure's id are written out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from diffedu.claims import write_atomically
from diffedu.errors import lookup

COURSE = Path(__file__).resolve().parents[1]
NUMBERED = [f"ch{number:02d}" for number in range(26)]
CHAPTERS = (*NUMBERED, "ch04b", "ch11a", "ch11b")
BUDGETS = {"laptop": 1, "full": 1}


@dataclass(frozen=True)
class Figure:
    """One figure of the course: where it comes from and what it claims.

    Attributes:
        id: as "F14".
        survey: survey and section, as "A 2.1".
        paper: arXiv id (or DOI) of the paper whose figure this is.
        source: what the paper shows there.
        claim: what must hold, in one sentence.
        chapter: the chapter that draws it, as "ch05".
        status: exact, measured, likely or fragile: how sure the claim is.
    """

    id: str
    survey: str
    paper: str
    source: str
    claim: str
    chapter: str
    status: str


def _registry() -> dict[str, Figure]:
    path = Path(__file__).with_suffix(".json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {row["id"]: Figure(**row) for row in rows}


FIGURES = _registry()


def notebook_of(chapter: str, course: Path = COURSE) -> Path | None:
    """The script of a chapter ("ch05"), or None while it is to come."""
    return next(iter(sorted((course / "notebooks").glob(f"{chapter}_*.py"))), None)


def list_figures(course: Path = COURSE) -> int:
    """Print every figure with survey, paper and claim; 0, as an exit code."""
    for figure in FIGURES.values():
        where = notebook_of(figure.chapter, course)
        place = where.stem if where else f"{figure.chapter}, to come"
        print(f"{figure.id:<5}{place}")
        print(f"     survey {figure.survey}; {figure.paper}: {figure.source}")
        print(f"     {figure.claim}")
    return 0


def make_figures(
    ids: Sequence[str],
    out: Path,
    budget: str = "laptop",
    device: str = "cpu",
    course: Path = COURSE,
) -> int:
    """Run the chapters that own the figures; write their pictures and numbers.

    Args:
        ids: figure ids; none stands for every figure whose chapter is here.
        out: the folder for ID.png (ID-2.png, …) and ID.json.
        budget: "laptop" or "full".
        device: where the chapters compute, as "cuda".
        course: the checkout that holds notebooks/.

    Returns:
        an exit code: 0, or 1 if a figure could not be made or its claim fails.

    Raises:
        ValueError: if an id or the budget is unknown.
    """
    lookup(BUDGETS, budget, "budget")
    wanted = [lookup(FIGURES, name, "figure") for name in ids]
    chosen = wanted or [f for f in FIGURES.values() if notebook_of(f.chapter, course)]
    env = {"DIFFEDU_BUDGET": budget, "DIFFEDU_DEVICE": device}
    owners = dict.fromkeys(figure.chapter for figure in chosen)
    done = [
        _make([f.id for f in chosen if f.chapter == owner], owner, out, env, course)
        for owner in owners
    ]
    return 0 if done and all(done) else 1


def _make(
    ids: list[str], chapter: str, out: Path, env: dict[str, str], course: Path
) -> bool:
    script = notebook_of(chapter, course)
    if script is None:
        _say(f"{', '.join(ids)}: chapter {chapter} is to come; nothing was made")
        return False
    print(f"{script.stem}: running it for {', '.join(ids)} …", flush=True)
    cells, entries, error = _run(script, ids, env)
    made = [_write(name, cells, entries, out, env | {"made by": script.stem})
            for name in ids]  # fmt: skip
    if error:
        _say(f"{script.stem}: {error}")
    return all(made) and not error


def _run(
    script: Path, ids: list[str], env: dict[str, str]
) -> tuple[list[Any], list[dict[str, Any]], str]:
    """The tagged cells with their outputs, the claims they made, and an error."""
    jupytext, NotebookClient, CellExecutionError = _jupyter()
    nb = jupytext.read(script)
    tagged = [i for i, cell in enumerate(nb.cells) if set(ids) & _tags(cell)]
    nb.cells = nb.cells[: max(tagged, default=-1) + 1]
    error = "" if tagged else f"no cell carries the tag {' or '.join(ids)}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "claims.jsonl"
        log.touch()
        places = {"resources": {"metadata": {"path": str(script.parent)}}}
        client = NotebookClient(nb, timeout=None, kernel_name="python3", **places)
        try:
            client.execute(
                env=os.environ | env | {"DIFFEDU_RECORD": str(log)}, stderr=DEVNULL
            )
        except CellExecutionError as failed:
            error = f"{failed.ename}: {failed.evalue}"
        lines = log.read_text(encoding="utf-8").splitlines()
    return nb.cells, [json.loads(line) for line in lines], error


def _jupyter() -> tuple[Any, Any, Any]:
    try:
        import jupytext
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as missing:
        raise ImportError(
            f"a figure is made by running its notebook, and {missing.name} is not "
            "installed; try: pip install -e '.[notebooks]'"
        ) from missing
    return jupytext, NotebookClient, CellExecutionError


def _tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _write(
    name: str,
    cells: list[Any],
    entries: list[dict[str, Any]],
    out: Path,
    about: dict[str, str],
) -> bool:
    pictures = [png for cell in cells if name in _tags(cell) for png in _pngs(cell)]
    claims = [entry for entry in entries if entry["figure"] == name]
    out.mkdir(parents=True, exist_ok=True)
    for number, png in enumerate(pictures, 1):
        stem = name if number == 1 else f"{name}-{number}"
        (out / f"{stem}.png").write_bytes(png)
    data = {"figure": vars(FIGURES[name]), "run": about, "claims": claims}
    write_atomically(out / f"{name}.json", json.dumps(data, indent=1) + "\n")
    print(f"{name}: {len(pictures)} pictures, {len(claims)} claims, in {out}")
    return bool(pictures and claims)


def _pngs(cell: Any) -> list[bytes]:
    from base64 import b64decode

    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [b64decode(each["image/png"]) for each in data if "image/png" in each]


def _say(message: str) -> None:
    print(message, file=sys.stderr)
