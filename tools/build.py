"""Make the notebooks, exercises, receipts and the README's table from the scripts.

One way and by content: `python tools/build.py`. See docs/authoring.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import gallery
import receipts
from chapters import ChapterError, Course, header, read, with_receipt
from execute import ChapterFailed, Run, execute
from pairs import (
    carry_over,
    changed_notebooks,
    load_pair,
    notebook_text,
    place,
    problems,
    why_run,
)
from strip import release

from diffedu.claims import write_atomically


@dataclass(frozen=True)
class Options:
    """What a build was asked for: run all, take times anew, and where to compute."""

    force: bool = False
    measure: bool = False
    device: str = "cpu"


def build(script: Path, course: Course, options: Options) -> list[Path]:
    """Bring what is made from one script up to date; the paths that changed.

    Raises:
        ChapterError: if the script can't be read as a chapter.
        ChapterFailed: if a cell raises; nothing was written then.
    """
    nb = read(script)
    if script.parent.name == "notebooks":
        header(nb, script.name)
    changed: list[Path] = []
    reason = why_run(script, nb, course)
    if reason or options.force:
        print(f"{place(script)}: running: {reason or 'asked for'} …", flush=True)
        run = execute(nb, script, course, options.device)
        if options.device != "cpu":
            return _keep_gpu(course, script, run)
        changed += _keep(course, script, nb, run, options.measure)
    else:
        carry_over(load_pair(script), nb)
    changed += _write_receipt_row(course, script, nb)
    changed += _write(script.with_suffix(".ipynb"), notebook_text(nb))
    if script.parent.name == "solutions":
        changed += _write(course.exercise(script.stem), notebook_text(release(nb)))
    return changed


def _keep(course: Course, script: Path, nb: Any, run: Run, measure: bool) -> list[Path]:
    """Write a run into the receipt; times stay if nothing but they would change."""
    receipt = receipts.load(course, script.stem)
    kind = script.parent.name
    new = {"hash": receipts.fingerprint(nb, run.files, course), "files": run.files}
    old = receipt.get(kind, {})
    timed = {"minutes": run.minutes, "peak_memory_mb": run.peak_memory_mb}
    if old.get("hash") == new["hash"] and not measure:
        timed = {k: old[k] for k in timed}
    receipt[kind] = new | timed
    if kind == "notebooks":
        again = {"claims": run.claims, "chapter": script.stem} | timed
        speed = receipt.get("speed") if old | timed == old else _speed()
        receipt |= again | {"speed": speed}
    return _write(course.receipt(script.stem), receipts.dump(receipt))


def _keep_gpu(course: Course, script: Path, run: Run) -> list[Path]:
    receipt = receipts.load(course, script.stem) | {"gpu_minutes": run.minutes}
    return _write(course.receipt(script.stem), receipts.dump(receipt))


def _speed() -> float | None:
    """The doctor's reading of this machine, so that times can be compared."""
    from diffedu import doctor

    return round(doctor.speed(2.0), 1)


def _write_receipt_row(course: Course, script: Path, nb: Any) -> list[Path]:
    if script.parent.name != "notebooks":
        return []
    words = receipts.words(receipts.load(course, script.stem))
    nb.cells[0].source = with_receipt(nb.cells[0].source, words)
    return _write(script, with_receipt(script.read_text(encoding="utf-8"), words))


def _write(path: Path, text: str) -> list[Path]:
    """Write a file unless it says so already; the path if it was written."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return []
    write_atomically(path, text)
    return [path]


def write_readme(course: Course) -> list[Path]:
    """Make README's table of chapters anew."""
    text = receipts.readme(course)
    return [] if text is None else _write(course.root / "README.md", text)


def build_all(course: Course, only: Sequence[str], options: Options) -> list[str]:
    """Build chapters one after another; the messages of those that failed."""
    failures = []
    for script in course.scripts(only):
        try:
            for path in build(script, course, options):
                print(f"  wrote {path.relative_to(course.root)}")
        except (ChapterError, ChapterFailed) as error:
            failures.append(str(error))
    for path in [] if failures else write_readme(course) + gallery.refresh(course):
        print(f"  wrote {path.relative_to(course.root)}")
    return failures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    top.add_argument("chapters", nargs="*", help="ch01, or a whole slug; none: all")
    modes = top.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="fail if out of step")
    modes.add_argument("--changed", action="store_true", help="list what has to run")
    modes.add_argument("--force", action="store_true", help="run what is unchanged too")
    modes.add_argument("--measure", action="store_true", help="--force, and new times")
    top.add_argument("--device", default="cpu", help="cuda: only take the GPU's time")
    return top


def main(argv: Sequence[str] | None = None, course: Course | None = None) -> int:
    """Run one command; 0 if all is well."""
    args, course = parser().parse_args(argv), course or Course()
    try:
        if args.changed:
            for path in changed_notebooks(course, args.chapters):
                print(path.relative_to(course.root))
            return 0
        timed = args.measure or args.device != "cpu"
        options = Options(args.force or timed, args.measure, args.device)
        wrong = (
            problems(course, args.chapters)
            if args.check
            else build_all(course, args.chapters, options)
        )
    except ChapterError as error:
        wrong = [str(error)]
    for line in wrong:
        print(line, file=sys.stderr)
    if args.check and wrong:
        print("out of step: run python tools/build.py", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
