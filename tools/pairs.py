"""Whether what was made from the scripts still fits them: compared by content only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import receipts
from chapters import ChapterError, Course, content, header, read
from strip import release


def place(script: Path) -> str:
    """A script in messages: "notebooks/ch01_slug"."""
    return f"{script.parent.name}/{script.stem}"


def notebook_text(nb: Any) -> str:
    """A notebook as the text of its file, the same for the same content."""
    return nbformat.writes(nb, version=4).rstrip("\n") + "\n"


def load_pair(script: Path) -> Any | None:
    """The notebook beside a script, or None if it is missing or broken."""
    path = script.with_suffix(".ipynb")
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        return None


def why_run(script: Path, nb: Any, course: Course) -> str:
    """Why a script has to run; "" if its outputs are those of its code."""
    pair, part = load_pair(script), _part(course, script)
    if pair is None:
        return "it has no notebook yet"
    if "hash" not in part:
        return "it has no receipt yet"
    if part["hash"] != receipts.fingerprint(nb, part["files"], course):
        return "its code changed, or the library's that it uses"
    if _code_cells(pair) != _code_cells(nb):
        return "the notebook's code differs from the script's"
    if any(c.execution_count is None for c in pair.cells if c.cell_type == "code"):
        return "the notebook was not executed"
    return ""


def _part(course: Course, script: Path) -> dict[str, Any]:
    return receipts.load(course, script.stem).get(script.parent.name, {})


def _code_cells(nb: Any) -> list[str]:
    return [c.source for c in nb.cells if c.cell_type == "code"]


def carry_over(pair: Any, nb: Any) -> None:
    """Give the cells the outputs of the pair, whose code is the same."""
    ran = (c for c in pair.cells if c.cell_type == "code")
    for cell in nb.cells:
        if cell.cell_type == "code":
            old = next(ran)
            cell.outputs, cell.execution_count = old.outputs, old.execution_count


def problems(course: Course, only: Sequence[str] = ()) -> list[str]:
    """Everything that is out of step; executes nothing."""
    found = []
    for script in course.scripts(only):
        try:
            found += [f"{place(script)}: {p}" for p in _steps(course, script)]
        except ChapterError as error:
            found.append(str(error))
    return found + ([] if only else _whole(course))


def _steps(course: Course, script: Path) -> list[str]:
    nb = read(script)
    if reason := why_run(script, nb, course):
        return [reason]
    pair = load_pair(script)
    found = []
    if content(pair) != content(nb) or _ids(pair) != _ids(nb):
        found.append("the notebook's text differs from the script's")
    if script.parent.name == "notebooks":
        told = receipts.words(receipts.load(course, script.stem))
        stale = header(nb, script.name).receipt != told
        found += ["the header's receipt row is not the receipt's"] if stale else []
    elif not same_exercise(course, script.stem, pair):
        found.append("the exercise is not what its solution makes")
    return found


def _ids(nb: Any) -> list[str]:
    return [cell.id for cell in nb.cells]


def same_exercise(course: Course, stem: str, solution: Any) -> bool:
    """Whether the exercise on disk is what a solution notebook makes."""
    path = course.exercise(stem)
    wanted = notebook_text(release(solution))
    return path.is_file() and path.read_text(encoding="utf-8") == wanted


def _whole(course: Course) -> list[str]:
    """What belongs to no script, and the README."""
    scripts = course.scripts()
    stems = {(p.parent.name, p.stem) for p in scripts}
    stems |= {("exercises", p.stem) for p in scripts if p.parent.name == "solutions"}
    made = [p for kind in ("notebooks", "solutions", "exercises")
            for p in sorted((course.root / kind).glob("*.ipynb"))]  # fmt: skip
    found = [f"{place(p)}.ipynb has no script; delete it, or write one"
             for p in made if (p.parent.name, p.stem) not in stems]  # fmt: skip
    text, path = receipts.readme(course), course.root / "README.md"
    if text is None:
        found.append(f"README.md lacks {receipts.BEGIN} or {receipts.END}")
    elif text != path.read_text(encoding="utf-8"):
        found.append("README.md: the table of chapters is not the receipts'")
    return found


def changed_notebooks(course: Course, only: Sequence[str] = ()) -> list[Path]:
    """The notebooks that have to run again."""
    scripts = [s for s in course.scripts(only) if why_run(s, read(s), course)]
    return [s.with_suffix(".ipynb") for s in scripts]
