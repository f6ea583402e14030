"""Making an exercise from its solution, by nbgrader's markers but without nbgrader."""

from __future__ import annotations

import copy
import re
from typing import Any

from chapters import ChapterError

SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")
HIDDEN = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
SCHEME = ("=== BEGIN MARK SCHEME ===", "=== END MARK SCHEME ===")
CODE_STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")
TEXT_STUB = ("YOUR ANSWER HERE",)


def release(nb: Any) -> Any:
    """A copy of a solution notebook without solutions, hidden tests and outputs."""
    nb = copy.deepcopy(nb)
    for cell in nb.cells:
        cell.source = _released(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def cut(source: str, markers: tuple[str, str], stub: tuple[str, ...] = ()) -> str:
    """The text with each marked block replaced by a stub at the block's indent.

    Raises:
        ChapterError: if a block is nested, not opened or not closed.
    """
    kept, inside = [], False
    for line in source.split("\n"):
        if line.strip() in markers:
            begins = line.strip() == markers[0]
            if begins == inside:
                raise ChapterError(f"{line.strip()} where it can't be: {source[:60]!r}")
            indent = re.match(r"\s*", line)[0]
            kept += [indent + each for each in stub] if begins else []
            inside = begins
        elif not inside:
            kept.append(line)
    if inside:
        raise ChapterError(f"{markers[0]} is not closed: {source[:60]!r}")
    return "\n".join(kept)


def _released(cell: Any) -> str:
    grading = cell.metadata.get("nbgrader", {})
    code, source = cell.cell_type == "code", cell.source
    if SOLUTION[0] in source:
        source = cut(source, SOLUTION, CODE_STUB if code else TEXT_STUB)
    elif grading.get("solution"):
        source = "\n".join(CODE_STUB if code else TEXT_STUB)
    for markers in (HIDDEN, SCHEME):
        if markers[0] in source:
            source = cut(source, markers).rstrip()
    return source


def solution_lines(nb: Any) -> set[str]:
    """Every line of a solution that says something, stripped: none may leak."""
    found: set[str] = set()
    for cell in nb.cells:
        kept = set(map(str.strip, _released(cell).split("\n")))
        found |= set(map(str.strip, cell.source.split("\n"))) - kept
    return {line for line in found - set(SOLUTION + HIDDEN + SCHEME) if len(line) > 6}
