"""Make docs/gallery.md: every figure so far, its claim, and what was measured.

`python tools/gallery.py` writes the page and its pictures from the executed notebooks
and the receipts; `--check` fails if they are out of step. Nothing is run.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import receipts
from chapters import ChapterError, Course, Header, header, read
from pairs import load_pair

from diffedu.claims import write_atomically
from diffedu.figures import FIGURES, Figure

PAGE, FOLDER = "docs/gallery.md", "docs/gallery"
MARKS = {True: "**holds**", None: "*reported*", False: "**fails**"}
LONGEST = 12  # numbers of a list that are printed
INTRO = """# Gallery

Every figure of the chapters that are here, with its claim and what was measured when
its notebook ran. **Holds** marks what the notebook asserts: it stops where that is
false. *Reported* marks numbers that are shown without being asserted. A control is what
the same measurement gives where the effect should be absent.

{figures} figures; {holds} statements hold, {reported} are reported.

This page is made by `python tools/gallery.py` from the receipts and the notebooks.
"""


@dataclass(frozen=True)
class Picture:
    """One picture of a figure: its file's name, its bytes, its description."""

    name: str
    png: bytes
    alt: str


@dataclass(frozen=True)
class Entry:
    """A figure with its pictures and the claims of the run."""

    figure: Figure
    pictures: list[Picture]
    claims: list[dict[str, Any]]


@dataclass(frozen=True)
class Chapter:
    """A chapter with its figures, in the order of the registry."""

    stem: str
    header: Header
    entries: list[Entry]


def chapters(course: Course) -> list[Chapter]:
    """Every built chapter with the figures that it draws.

    Raises:
        ChapterError: if a cell has a figure's tag, but no picture or no claim.
    """
    found = []
    for script in course.scripts(kinds=("notebooks",)):
        pair, receipt = load_pair(script), receipts.load(course, script.stem)
        if pair is None or not receipt:
            continue
        tags = {tag for cell in pair.cells for tag in cell.metadata.get("tags", [])}
        drawn = [figure for name, figure in FIGURES.items() if name in tags]
        if drawn:
            entries = [entry(figure, pair, receipt) for figure in drawn]
            found.append(Chapter(script.stem, header(read(script)), entries))
    return found


def entry(figure: Figure, pair: Any, receipt: dict[str, Any]) -> Entry:
    """A figure with what its notebook and its receipt hold of it.

    Args:
        figure: of the registry.
        pair: the executed notebook.
        receipt: the chapter's.

    Raises:
        ChapterError: if it has no picture or no claim.
    """
    cells = [c for c in pair.cells if figure.id in c.metadata.get("tags", [])]
    drawn = [each for cell in cells for each in _drawn(cell)]
    claims = [c for c in receipt.get("claims", []) if c["figure"] == figure.id]
    if not drawn or not claims:
        what = "picture" if not drawn else "claim"
        raise ChapterError(
            f"{figure.chapter}: figure {figure.id} has no {what}; "
            f"build its chapter again: python tools/build.py {figure.chapter}"
        )
    pictures = [
        Picture(f"{figure.id}{f'-{n}' if n > 1 else ''}.png", png, alt)
        for n, (png, alt) in enumerate(drawn, 1)
    ]
    return Entry(figure, pictures, claims)


def _drawn(cell: Any) -> Iterator[tuple[bytes, str]]:
    """The pictures of one cell with their descriptions."""
    for output in cell.get("outputs", []):
        if data := output.get("data", {}).get("image/png"):
            told = output.get("metadata", {}).get("image/png", {})
            yield base64.b64decode(data), told.get("alt", "")


def page(found: Sequence[Chapter]) -> str:
    """The gallery as Markdown."""
    claims = [c for chapter in found for e in chapter.entries for c in e.claims]
    intro = INTRO.format(
        figures=sum(len(chapter.entries) for chapter in found),
        holds=sum(c["holds"] is True for c in claims),
        reported=sum(c["holds"] is None for c in claims),
    )
    parts = [intro, index(found)]
    for chapter in found:
        parts.append(f"## {chapter.header.number}. {chapter.header.title}\n")
        parts.append(f"[Open the chapter](../notebooks/{chapter.stem}.ipynb)\n")
        parts += [section(each) for each in chapter.entries]
    return "\n".join(parts)


def index(found: Sequence[Chapter]) -> str:
    """A table of all figures with links to their sections."""
    lines = ["| figure | what it shows | chapter |", "|---|---|---|"]
    for chapter in found:
        for figure in (each.figure for each in chapter.entries):
            link = f"[{figure.id}](#{figure.id})"
            lines.append(f"| {link} | {figure.source} | {chapter.header.number} |")
    return "\n".join(lines) + "\n"


def section(of: Entry) -> str:
    """A figure's part of the page."""
    figure = of.figure
    lines = [f'<a id="{figure.id}"></a>\n', f"### {figure.id}: {figure.source}\n"]
    lines += [f"![{_escape(p.alt)}](gallery/{p.name})\n" for p in of.pictures]
    lines.append(f"**Claim ({figure.status}).** {figure.claim}\n")
    for claim in of.claims:
        line = f"- {MARKS[claim['holds']]}: {claim['statement']}"
        numbers = "; ".join(f"{k} = {word(v)}" for k, v in claim["numbers"].items())
        lines.append(line + (f"  \n  `{numbers}`" if numbers else ""))
    lines.append(f"\nAfter {_paper(figure.paper)}; survey {figure.survey}.\n")
    return "\n".join(lines)


def word(value: Any) -> str:
    """A number or nested lists of numbers, to three digits, long lists cut."""
    if isinstance(value, list):
        kept = [word(each) for each in value[:LONGEST]]
        return "[" + ", ".join(kept + ["…"] * (len(value) > LONGEST)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _paper(paper: str) -> str:
    """A link to a paper by its arXiv id or its DOI."""
    site = "https://doi.org" if "/" in paper else "https://arxiv.org/abs"
    return f"[{paper}]({site}/{paper})"


def _escape(text: str) -> str:
    return text.replace("[", r"\[").replace("]", r"\]")


def wanted(course: Course) -> dict[Path, bytes]:
    """Every file of the gallery with its content."""
    found = chapters(course)
    pictures = (p for chapter in found for e in chapter.entries for p in e.pictures)
    files = {course.root / FOLDER / picture.name: picture.png for picture in pictures}
    return files | {course.root / PAGE: page(found).encode()}


def problems(course: Course) -> list[str]:
    """What is out of step; nothing is written."""
    files = wanted(course)
    lacking = [p for p, content in files.items() if _content(p) != content]
    left = [p for p in (course.root / FOLDER).glob("*") if p not in files]
    place = course.root
    return [
        *(f"{p.relative_to(place)} is not what the notebooks make" for p in lacking),
        *(f"{p.relative_to(place)} belongs to no figure" for p in left),
    ]


def write(course: Course) -> list[Path]:
    """Make the gallery; the paths that changed, those taken away included."""
    files = wanted(course)
    changed = [path for path, content in files.items() if _content(path) != content]
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            write_atomically(path, files[path].decode())
        else:
            path.write_bytes(files[path])
    left = [p for p in (course.root / FOLDER).glob("*") if p not in files]
    for path in left:
        path.unlink()
    return changed + left


def refresh(course: Course) -> list[Path]:
    """`write` for a course that has a gallery; nothing for others."""
    return write(course) if (course.root / PAGE).is_file() else []


def _content(path: Path) -> bytes | None:
    """A file's bytes, a text's with this system's line ends taken out."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    return data.replace(b"\r\n", b"\n") if path.suffix == ".md" else data


def main(argv: Sequence[str] | None = None, course: Course | None = None) -> int:
    """Run one command; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if out of step")
    args, course = parser.parse_args(argv), course or Course()
    try:
        found = problems(course) if args.check else write(course)
    except ChapterError as error:
        print(error, file=sys.stderr)
        return 1
    for each in found:
        told = each if args.check else f"wrote {each.relative_to(course.root)}"
        print(told, file=sys.stderr if args.check else sys.stdout)
    if args.check and found:
        print("out of step: run python tools/gallery.py", file=sys.stderr)
    return int(args.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
