"""Which files of the library a piece of code needs, followed through its imports.

The package imports all its rooms, so what was loaded says little; this follows only
the imports that are written down, and passes over the package's own `__init__`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGE = "diffedu"


def needed(codes: Sequence[str], library: Path) -> set[str]:
    """Library files that some code imports, directly or not, as "diffedu/x.py".

    Args:
        codes: Python code, as of notebook cells; what can't be parsed is passed over.
        library: the folder that holds diffedu/.
    """
    todo = [name for code in codes for name in _imports(code, "")]
    found: set[str] = set()
    while todo:
        for path in _files(todo.pop(), library):
            name = path.relative_to(library).as_posix()
            if name not in found:
                found.add(name)
                package = ".".join(Path(name).parent.parts)
                text = path.read_text(encoding="utf-8")
                is_top = name == f"{PACKAGE}/__init__.py"
                todo += [] if is_top else _imports(text, package)
    return found


def _imports(code: str, package: str) -> Iterator[str]:
    """Dotted names of everything under diffedu that the code imports."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if _ours(a.name))
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, package)
            if _ours(module):
                yield from (f"{module}.{a.name}" for a in node.names)


def _ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _files(name: str, library: Path) -> Iterator[Path]:
    """The files that importing a dotted name reads: packages on the way included."""
    place = library
    for part in name.split("."):
        place = place / part
        for path in (place / "__init__.py", place.with_name(f"{part}.py")):
            if path.is_file():
                yield path
