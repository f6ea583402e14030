"""Find links between files that lead nowhere; nothing on the network is asked."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")
ANCHOR = re.compile(r"\b(?:id|name)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def prose(path: Path) -> str:
    """The Markdown of a page, a notebook or a script, without its code blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        pages = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        text = "\n\n".join(pages)
    elif path.suffix == ".py":
        text = "\n\n".join(body for kind, body in percent_cells(text) if kind == "text")
    return FENCE.sub("", text)


def percent_cells(text: str) -> Iterator[tuple[str, str]]:
    """Cells of a py:percent script as ("text" or "code", source)."""
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            yield "text", re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        else:
            yield "code", body.strip("\n")


def slug(heading: str) -> str:
    """The anchor that a page gives to a heading: lower case, hyphens for blanks."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = unicodedata.normalize("NFC", text.replace("`", "").strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """All anchors of a page: its headings (a repeated one is numbered) and its ids."""
    text = prose(path)
    seen: dict[str, int] = {}
    found = set(ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        name = slug(heading)
        found.add(name if name not in seen else f"{name}-{seen[name]}")
        # JupyterLab keeps case and puts hyphens for blanks.
        found.add(heading.strip().replace(" ", "-"))
        seen[name] = seen.get(name, 0) + 1
    return found


def dead_links(path: Path) -> list[str]:
    """Links of one page to files or anchors that are not there, as "file: target"."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    targets = LINK.findall(text) + HTML.findall(text)
    inside = (t for t in targets if not OUTSIDE.match(t))
    return [f"{path.name}: {t}" for t in inside if not _leads_somewhere(path, t)]


def _leads_somewhere(path: Path, target: str) -> bool:
    """Whether a link of the page `path` has a file, and that file the anchor."""
    place, _, anchor = unquote(target).partition("#")
    goal = path.parent / place if place else path
    if not goal.exists():
        return False
    known = goal.suffix in (".md", ".ipynb")
    return not (anchor and known) or anchor in anchors(goal)


def pages(root: Path) -> list[Path]:
    """Every page that readers see: Markdown, notebooks, and their sources."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    for folder in ("notebooks", "solutions", "exercises"):
        found += [*root.glob(f"{folder}/*.ipynb"), *root.glob(f"{folder}/*.py")]
    found += [*root.glob("benchmarks/*.md"), *root.glob("diffedu/**/*.md")]
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)
