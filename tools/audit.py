"""Print every budget that keeps the course small, with the place of each excess.

Only line width, the ceiling of 40 lines a function and dead links fail; the rest is for
eyes. A function is never split for the number's sake.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from links import dead_links, pages, percent_cells  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CORE = ("schedules", "denoiser", "prediction", "losses", "samplers")
COURSE_IMPORTS = {
    *("torch", "numpy", "matplotlib", "tqdm", "safetensors", "diffedu"),
    *("IPython", "ipywidgets", "psutil", "nbformat", "nbclient", "jupytext", "PIL"),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Row(NamedTuple):
    """One budget: name, target, value, where it is exceeded, whether that fails."""

    name: str
    target: str
    value: str
    excess: list[str]
    fails: bool = False


class Source(NamedTuple):
    """One Python file: its name as printed, its text and its syntax tree."""

    name: str
    text: str
    tree: ast.Module


def read(root: Path, *patterns: str) -> list[Source]:
    """The Python files that match the patterns, parsed."""
    paths = sorted({p for pattern in patterns for p in root.glob(pattern)})
    return [_parse(p, root) for p in paths if p.is_file()]


def _parse(path: Path, root: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(str(path.relative_to(root)), text, ast.parse(text))


def share(good: int, total: int) -> str:
    """`good` of `total` as a percentage."""
    return f"{100 * good / total:.1f} %" if total else "none"


def docstring_lines(tree: ast.AST) -> set[int]:
    """Numbers of the lines that docstrings fill."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None and first:
                lines.update(range(first.lineno, first.end_lineno + 1))
    return lines


def code_lines(source: Source, start: int = 1, end: int | None = None) -> int:
    """Lines from `start` to `end` that hold code: no blanks, comments, docstrings."""
    skipped = docstring_lines(source.tree)
    lines = enumerate(source.text.splitlines()[: end or None], start=1)
    kept = (x.strip() for n, x in lines if n >= start and n not in skipped)
    return sum(bool(x) and not x.startswith("#") for x in kept)


def functions(source: Source) -> Iterator[tuple[Function, str]]:
    """All functions of a file with their dotted names."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[Function, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield child, prefix + child.name
            named = isinstance(child, Function | ast.ClassDef)
            yield from walk(child, f"{prefix}{child.name}." if named else prefix)

    yield from walk(source.tree, "")


def body_length(source: Source, node: Function) -> int:
    """Lines of code in a function's body, its docstring not counted."""
    return code_lines(source, node.body[0].lineno, node.end_lineno)


def line_width(sources: list[Source]) -> list[Row]:
    """Line width: 88 at most, 95 % within 80."""
    widths = [
        (len(line), f"{s.name}:{n}")
        for s in sources
        for n, line in enumerate(s.text.splitlines(), 1)
    ]
    wide = [f"{place} has {w}" for w, place in widths if w > 88]
    within = sum(w <= 80 for w, _ in widths)
    few = [] if within >= 0.95 * len(widths) else ["too many lines above 80"]
    longest = str(max((w for w, _ in widths), default=0))
    return [
        Row("widest line", "88", longest, wide, fails=True),
        Row("lines within 80", "95 %", share(within, len(widths)), few),
    ]


def function_length(library: list[Source], others: list[Source]) -> list[Row]:
    """Function bodies: median 5, 90 % within 15, none above 40."""
    sizes = [(body_length(s, f), s.name, n) for s in library for f, n in functions(s)]
    more = [(body_length(s, f), s.name, n) for s in others for f, n in functions(s)]
    lengths = [size for size, _, _ in sizes] or [0]
    within = sum(n <= 15 for n in lengths)
    longest = sorted(sizes, reverse=True)[: max(0, len(sizes) // 10)]
    places = [f"{file} {name}: {n}" for n, file, name in longest if n > 15]
    above = [f"{f} {name}: {n}" for n, f, name in sizes + more if n > 40]
    top = max([*lengths, *(n for n, _, _ in more)])
    median = statistics.median(lengths)
    return [
        Row("median function body", "5", f"{median:g}", ["above 5"] * (median > 5)),
        Row(
            "bodies within 15 lines",
            "90 %",
            share(within, len(lengths)),
            places if within < 0.9 * len(lengths) else [],
        ),
        Row("longest function body", "40", str(top), above, fails=True),
    ]


def file_length(library: list[Source]) -> list[Row]:
    """Library files: 250 lines; the core below 700 lines of code."""
    sizes = {s.name: len(s.text.splitlines()) for s in library}
    long = [f"{name}: {n}" for name, n in sizes.items() if n > 250]
    core = [s for s in library if re.split(r"[/.]", s.name)[1] in CORE]
    total = sum(code_lines(s) for s in core)
    parts = [f"{s.name}: {code_lines(s)}" for s in core]
    return [
        Row("longest library file", "250", str(max(sizes.values(), default=0)), long),
        Row("code of the core", "700", str(total), parts if total >= 700 else []),
    ]


def public(source: Source) -> Iterator[tuple[Function | ast.ClassDef, str]]:
    """Public functions, classes and methods of a module with their names."""
    found = [(f, n) for f, n in functions(source) if _top_level(source.tree, f)]
    classes = [n for n in source.tree.body if isinstance(n, ast.ClassDef)]
    for node, name in [*found, *((c, c.name) for c in classes)]:
        if not any(part.startswith("_") for part in name.split(".")):
            yield node, name


def _top_level(tree: ast.Module, node: Function) -> bool:
    """Whether a function stands in the module or in a class of it."""
    classes = [c for c in tree.body if isinstance(c, ast.ClassDef)]
    return node in tree.body or any(node in c.body for c in classes)


def documentation(library: list[Source]) -> list[Row]:
    """Docstrings, types and shapes of all that is public: 100 % each."""
    items = [(n, f"{s.name} {name}") for s in library for n, name in public(s)]
    bare = [place for n, place in items if not ast.get_docstring(n)]
    typed = [(f, place) for f, place in items if isinstance(f, Function)]
    untyped = [f"{p}({a.arg})" for f, p in typed for a in arguments(f) if not _typed(a)]
    count = sum(len(list(arguments(f))) for f, _ in typed)
    tensors = [(f, p) for f, p in typed if any(map(_is_tensor, arguments(f)))]
    shapeless = [p for f, p in tensors if not _tells_shapes(f)]
    rows = [
        ("public docstrings", bare, len(items)),
        ("typed arguments", untyped, count),
        ("tensors with shapes", shapeless, len(tensors)),
    ]
    return [Row(n, "100 %", share(t - len(bad), t), bad) for n, bad, t in rows]


def arguments(node: Function) -> Iterator[ast.arg]:
    """A function's arguments but self and cls."""
    every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    every += [a for a in (node.args.vararg, node.args.kwarg) if a]
    return (a for a in every if a.arg not in ("self", "cls"))


def _typed(argument: ast.arg) -> bool:
    return argument.annotation is not None


def _is_tensor(argument: ast.arg) -> bool:
    return _typed(argument) and "Tensor" in ast.unparse(argument.annotation)


def _tells_shapes(node: Function) -> bool:
    """Whether the docstring speaks of shapes: "shape", "(B, D)", "(N,)" or "scalar"."""
    form = r"shape|\([A-Z]\w*(?:,[^)]*)?\)|\(\)|\bscalar\b|\(\*|\(\.\.\."
    return bool(re.search(form, ast.get_docstring(node) or "", re.IGNORECASE))


def imports(library: list[Source]) -> list[Row]:
    """What the library imports besides the standard library."""
    bad = []
    for source in library:
        for node in ast.walk(source.tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if node.level == 0 else []
            elif not isinstance(node, ast.Import):
                continue
            roots = {n.split(".")[0] for n in names if n} - COURSE_IMPORTS
            outside = roots - set(sys.stdlib_module_names)
            bad += [f"{source.name}:{node.lineno} {n}" for n in sorted(outside)]
    return [Row("imports outside the list", "0", str(len(bad)), bad)]


def cells(root: Path) -> list[Row]:
    """Code cells: median 6, 90 % within 18; 40 to 90 words of prose for each."""
    lengths: list[tuple[int, str]] = []
    off, averages = [], []
    for path in sorted(root.glob("notebooks/*.py")):
        found = list(percent_cells(path.read_text(encoding="utf-8")))
        code = [body for kind, body in found if kind == "code" and body.strip()]
        words = sum(len(body.split()) for kind, body in found if kind == "text")
        average = words / max(1, len(code))
        averages.append(average)
        if not 40 <= average <= 90:
            off.append(f"{path.name}: {average:.0f}")
        lengths += [(_cell_lines(b), f"{path.name} cell {i}") for i, b in _number(code)]
    sizes = [n for n, _ in lengths] or [0]
    median, within = statistics.median(sizes), sum(n <= 18 for n in sizes)
    long = [f"{place}: {n}" for n, place in lengths if n > 18]
    words = ", ".join(f"{a:.0f}" for a in averages) or "none"
    return [
        Row("median code cell", "6", f"{median:g}", ["above 6"] * (median > 6)),
        Row(
            "cells within 18 lines",
            "90 %",
            share(within, len(sizes)),
            long if within < 0.9 * len(sizes) else [],
        ),
        Row("words of prose a code cell", "40 to 90", words, off),
    ]


def _number(items: Iterable[str]) -> Iterable[tuple[int, str]]:
    return enumerate(items, 1)


def _cell_lines(body: str) -> int:
    return sum(bool(line.strip()) for line in body.splitlines())


def checkpoints(root: Path) -> list[Row]:
    """Checkpoints: 5 MB each, 60 MB in all."""
    sizes = {p.name: p.stat().st_size / 1e6 for p in root.glob("**/*.safetensors")}
    big = [f"{name}: {size:.1f} MB" for name, size in sizes.items() if size > 5]
    total = sum(sizes.values())
    largest = f"{max(sizes.values(), default=0):.1f} MB"
    return [
        Row("largest checkpoint", "5 MB", largest, big),
        Row("checkpoints in all", "60 MB", f"{total:.1f} MB", ["over"] * (total > 60)),
    ]


def links(root: Path) -> list[Row]:
    """Links between files that lead nowhere."""
    dead = [place for page in pages(root) for place in dead_links(page)]
    return [Row("dead links", "0", str(len(dead)), dead, fails=True)]


def audit(root: Path) -> list[Row]:
    """All budgets of the checkout at `root`."""
    library = read(root, "diffedu/**/*.py")
    others = read(root, "tools/*.py", "benchmarks/*.py")
    chapters = read(root, "notebooks/*.py", "solutions/*.py", "tests/**/*.py")
    return [
        *line_width(library + others + chapters),
        *function_length(library, others),
        *file_length(library),
        *documentation(library),
        *imports(library),
        *cells(root),
        *checkpoints(root / "diffedu"),
        *links(root),
    ]


def main(argv: list[str] | None = None) -> int:
    """Print the table, then the places; 1 if a budget that fails is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--places", type=int, default=12, help="printed a budget")
    args = parser.parse_args(argv)
    rows = audit(args.root)
    for row in rows:
        state = "ok" if not row.excess else "FAIL" if row.fails else "over"
        print(f"{state:5s}{row.name:28s}{row.target:>10s}   {row.value}")
    for row in rows:
        if row.excess:
            print(f"\n{row.name}: {len(row.excess)}")
            print("\n".join(f"  {place}" for place in row.excess[: args.places]))
    return int(any(row.excess and row.fails for row in rows))


if __name__ == "__main__":
    sys.exit(main())
