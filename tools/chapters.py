"""Reading a chapter's scripts: cells with stable ids, tags and the header table.

The scripts (py:percent) are the source; everything else is made from them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("notebooks", "solutions")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python"}
RECEIPT_ROW = re.compile(r"^((?:# )?\| receipt \|).*$", re.M)
NUMBERED = re.compile(r"^# (\d+[a-z]?)\. (.+)$", re.M)
ROLES = ("solution", "check", "answer", "task")
FIGURE = re.compile(r"F\d\d\d?[a-z]?|A-T?\d")
OTHER_TAGS = ("raises-exception",)


class ChapterError(ValueError):
    """A script that can't be read as a chapter; the message says where and why."""


@dataclass(frozen=True)
class Course:
    """Where the course lies.

    Attributes:
        root: the folder of notebooks/, solutions/, exercises/, docs/ and README.md.
        library: the folder that holds diffedu/.
    """

    root: Path = ROOT
    library: Path = ROOT

    def scripts(
        self, only: Sequence[str] = (), kinds: Sequence[str] = KINDS
    ) -> list[Path]:
        """The scripts of some chapters ("ch01" or a slug), of all if none is named."""
        found = [p for kind in kinds for p in (self.root / kind).glob("ch*_*.py")]
        found.sort(key=lambda p: (p.stem, p.parent.name))
        wrong = [n for n in only if not any(_named(p, n) for p in found)]
        if wrong:
            here = ", ".join(dict.fromkeys(p.stem for p in found)) or "none"
            raise ChapterError(f"chapter {wrong[0]!r} is not here; there are: {here}")
        return [p for p in found if not only or any(_named(p, n) for n in only)]

    def receipt(self, stem: str) -> Path:
        """Where a chapter's receipt lies."""
        return self.root / "docs" / "receipts" / f"{stem}.json"

    def exercise(self, stem: str) -> Path:
        """Where a chapter's exercises lie."""
        return self.root / "exercises" / f"{stem}.ipynb"


@dataclass(frozen=True)
class Header:
    """What a chapter's first cell says of it."""

    number: str
    title: str
    surveys: str
    needs: str
    study: str
    figures: tuple[str, ...]
    receipt: str


def _named(path: Path, name: str) -> bool:
    return path.stem == name or path.stem.split("_")[0] == name


def read(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script: kernel, stable ids, nbgrader's metadata; not run."""
    nb = jupytext.read(script)
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(
        {
            "kernelspec": KERNEL | {"name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    seen: dict[str, int] = {}
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.id = _identity(script.stem, cell, seen)
        if grading := _grading(cell, f"{script.name}, cell {number}"):
            cell.metadata["nbgrader"] = nbformat.from_dict(grading)
    return nb


def _identity(stem: str, cell: Any, seen: dict[str, int]) -> str:
    """A cell's id from its text, so that it stays when other cells move."""
    text = f"{stem}/{cell.cell_type}/{RECEIPT_ROW.sub('', cell.source)}"
    seen[text] = seen.get(text, 0) + 1
    return hashlib.sha1(f"{text}/{seen[text]}".encode()).hexdigest()[:8]


def role(cell: Any) -> tuple[str, str] | None:
    """("check", "ddim_step") for a cell tagged check:ddim_step; None without a role."""
    for tag in cell.metadata.get("tags", []):
        kind, colon, name = tag.partition(":")
        if colon and kind in ROLES:
            return kind, name
    return None


def points(cell: Any) -> int | None:
    """The points of a cell tagged points:2, or None."""
    found = [t[7:] for t in cell.metadata.get("tags", []) if t.startswith("points:")]
    return int(found[0]) if found else None


def _grading(cell: Any, where: str) -> dict[str, Any] | None:
    part, worth = role(cell), points(cell)
    if part is None:
        _refuse(worth is not None, f"{where}: points without check, answer or task")
        return None
    kind, name = part
    graded = kind != "solution"
    _refuse(not re.fullmatch(r"[A-Za-z0-9_-]+", name), f"{where}: bad name {name!r}")
    _refuse(graded and worth is None, f"{where}: {kind}:{name} needs points:N")
    by_hand = kind in ("answer", "task")
    _refuse(by_hand and cell.cell_type != "markdown", f"{where}: {kind} is markdown")
    grading = {
        "grade": kind in ("check", "answer"),
        "grade_id": f"check_{name}" if kind == "check" else name,
        "locked": kind in ("check", "task"),
        "schema_version": 3,
        "solution": kind in ("solution", "answer"),
        "task": kind == "task",
    }
    return grading | ({"points": worth} if graded else {})


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise ChapterError(message)


def header(nb: Any, where: str = "the notebook") -> Header:
    """What the first cell says; ChapterError if title or a row is missing."""
    first = nb.cells[0] if nb.cells else None
    text = first.source if first and first.cell_type == "markdown" else ""
    title = NUMBERED.search(text)
    rows = dict(re.findall(r"^\| (\w+) \| (.*?) \|$", text, re.M))
    missing = [n for n in ("surveys", "needs", "study", "receipt") if n not in rows]
    _refuse(title is None, f'{where}: the first cell has no title "# 2. Title"')
    _refuse(bool(missing), f"{where}: the header table lacks {', '.join(missing)}")
    figures = tuple(re.findall(FIGURE, rows.get("figures", "")))
    kept = (rows["surveys"], rows["needs"], rows["study"], figures, rows["receipt"])
    return Header(title[1], title[2], *kept)


def with_receipt(text: str, words: str) -> str:
    """The text, of a script or a cell, with its receipt row saying `words`."""
    return RECEIPT_ROW.sub(lambda row: f"{row[1]} {words} |", text)


def content(nb: Any) -> list[tuple[Any, ...]]:
    """What two notebooks are compared by: cells without outputs and counts."""
    return [
        (c.cell_type, c.source, tuple(c.metadata.get("tags", [])),
         _plain(c.metadata.get("nbgrader", {})))
        for c in nb.cells
    ]  # fmt: skip


def _plain(metadata: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(dict(metadata).items()))
