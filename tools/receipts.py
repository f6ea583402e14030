"""What a chapter depends on, what its run showed, and the README's table of both."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from chapters import ChapterError, Course, Header, header, read

BEGIN, END = "<!-- chapters:begin -->", "<!-- chapters:end -->"
CODE, PASSED_OVER = ".py", {".pyc", ".part"}
# Texts of the registry and checksums: no figure changes with them.
NO_DATA = ("figures.json", "sha256.json")


def code_only(source: str) -> str:
    """Python code without docstrings, comment lines and blank lines."""
    drop: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        text = first.value if isinstance(first, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            drop |= set(range(first.lineno, first.end_lineno + 1))
    lines = [x.rstrip() for i, x in enumerate(source.splitlines(), 1) if i not in drop]
    return "\n".join(x for x in lines if x and not x.lstrip().startswith("#"))


@cache
def _file_text(path: Path, stamp: tuple[int, int]) -> str:
    return code_only(path.read_text(encoding="utf-8"))


def _code(path: Path) -> str:
    info = path.stat()
    return _file_text(path, (info.st_mtime_ns, info.st_size))


def fingerprint(nb: Any, files: Sequence[str], course: Course) -> str:
    """A hash of all that a run depends on.

    Args:
        nb: the chapter; only its code cells count.
        files: library files it imports, relative to the library's folder.
        course: where they lie.
    """
    digest = hashlib.sha256()
    chapter = "\n\n".join(c.source for c in nb.cells if c.cell_type == "code")
    texts = [chapter]
    for name in files:
        path = course.library / name
        texts.append(f"{name}\n{_code(path) if path.is_file() else 'missing'}")
    for text in texts:
        digest.update(text.encode() + b"\0")
    for path in data_files(texts, course):
        digest.update(path.name.encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def data_files(texts: Iterable[str], course: Course) -> list[Path]:
    """Files under diffedu/ that some text names, as "digits.npz" or in quotes."""
    text = "\n".join(texts)
    found = []
    for path in sorted((course.library / "diffedu").rglob("*")):
        code = path.suffix in PASSED_OVER | {CODE} or path.name in NO_DATA
        named = path.name in text or f'"{path.stem}"' in text
        if path.is_file() and not code and named:
            found.append(path)
    return found


def load(course: Course, stem: str) -> dict[str, Any]:
    """A chapter's receipt, empty if there is none yet.

    Raises:
        ChapterError: if the file is broken.
    """
    path = course.receipt(stem)
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        hint = "restore it, or delete it and build the chapter again"
        raise ChapterError(f"{path} is not JSON ({error}); {hint}") from error


def dump(receipt: dict[str, Any]) -> str:
    """A receipt as text."""
    return json.dumps(receipt, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def words(receipt: dict[str, Any]) -> str:
    """What the header's receipt row says of a run."""
    if "minutes" not in receipt:
        return "not run yet"
    text = f"{minutes(receipt['minutes'])} on one CPU thread"
    if "gpu_minutes" in receipt:
        text += f", {minutes(receipt['gpu_minutes'])} on a GPU"
    return f"{text}, {receipt['peak_memory_mb']} MB"


def minutes(value: float) -> str:
    """A time for readers: "25 seconds" or "1.3 minutes"."""
    return f"{value:.1f} minutes" if value >= 1 else f"{max(value * 60, 1):.0f} seconds"


def table(course: Course) -> str:
    """The README's table of chapters."""
    lines = [
        "| chapter | study | needs | runs in | memory | exercises |",
        "|---|---|---|---|---|---|",
    ]
    for script in course.scripts(kinds=("notebooks",)):
        lines.append(_row(course, script.stem, header(read(script), script.name)))
    return "\n".join(lines)


def _row(course: Course, stem: str, head: Header) -> str:
    receipt = load(course, stem)
    there = (course.root / "solutions" / f"{stem}.py").is_file()
    time = minutes(receipt["minutes"]) if "minutes" in receipt else "not run yet"
    memory = f"{receipt['peak_memory_mb']} MB" if "peak_memory_mb" in receipt else ""
    cells = (
        f"[{head.number}. {head.title}](notebooks/{stem}.ipynb)",
        head.study,
        re.sub(r"ch0?(\d+[a-z]?)", r"\1", head.needs),
        time,
        memory,
        f"[open](exercises/{stem}.ipynb)" if there else "",
    )
    return f"| {' | '.join(cells)} |"


def readme(course: Course) -> str | None:
    """README.md with its table made anew; None if it has no place for one."""
    path = course.root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if BEGIN not in text or END not in text:
        return None
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table(course)}\n{END}{after}"
