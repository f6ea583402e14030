"""Side by side in one run: a sampler's step, and a training step (`make bench`).

`--write` also puts the table into README.md and the numbers into results.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from side_by_side import Row
from trainings import TASKS, trainings
from walks import K_DIFFUSION, k_diffusion_sampling, walks

HERE = Path(__file__).resolve().parent
SHAPE = (64, 3, 32, 32)
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def table(title: str, rows: Sequence[Row], spell: Callable[[float], str]) -> str:
    """The rows as a table in Markdown; `spell` writes a time in microseconds."""
    lines = [
        f"| {title} | beside | diffedu | the other | ratio of times (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        times = f"{spell(r.ours)} | {spell(r.theirs)}"
        ratio = f"**{r.ratio:.2f}** ({r.low:.2f} to {r.high:.2f})"
        lines.append(f"| {r.task} | {r.other} | {times} | {ratio} |")
    return "\n".join(lines)


def tables(walked: Sequence[Row], trained: Sequence[Row]) -> str:
    """Both tables: a sampler's cost in microseconds, trainings in steps a second."""
    costs = table("own cost of a step", walked, lambda us: f"{us:.0f} µs")
    rates = table("steps a second", trained, lambda us: f"{1e6 / us:.3g}")
    return f"{costs}\n\n{rates}"


def installed(package: str) -> str:
    """The version of a package, or that it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def conditions(steps: int, rounds: int) -> dict[str, object]:
    """What the numbers were measured with."""
    return {
        "shape": list(SHAPE),
        "steps": steps,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "diffusers", "k-diffusion")},
        "k-diffusion measured": k_diffusion_sampling() is not None,
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def notes(about: dict[str, object]) -> str:
    """What a reader must know to read the table."""
    said = [
        f"Processor time of one step, one thread, {about['processor']}, "
        f"torch {about['torch']}, diffusers {about['diffusers']}: medians of "
        f"{about['rounds']} rounds in which all run in turn, and the median of the "
        "ratios within a round (below 1: diffedu takes less time).",
        f"Samplers: float32 of shape {'x'.join(map(str, SHAPE))}, a network that "
        "answers a tensor made beforehand, each library in its own parametrisation.",
    ]
    if about["k-diffusion measured"]:
        said.append(
            f"k-diffusion {about['k-diffusion']}, its module of samplers alone; for "
            f"DDIM its `{K_DIFFUSION['DDIM']}`, the same step in its variables, draws "
            "noise even where none is added. Its rows appear where it is installed."
        )
    return " ".join(said)


def insert(text: str, block: str) -> str:
    """The text with the block between the marks, in place of what stood there.

    Raises:
        ValueError: if a mark is missing.
    """
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"README.md needs the lines {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def write(
    block: str, rows: Sequence[Row], about: dict[str, object], folder: Path
) -> None:
    """Put the block into the folder's README.md, the numbers into results.json."""
    readme = folder / "README.md"
    readme.write_text(insert(readme.read_text("utf-8"), block), "utf-8")
    numbers = json.dumps({"with": about, "rows": [asdict(r) for r in rows]}, indent=1)
    (folder / "benchmarks" / "results.json").write_text(numbers + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of a walk or training")
    parser.add_argument("--rounds", type=int, default=31, help="odd, for a median")
    parser.add_argument("--write", action="store_true", help="README and results.json")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    walked = walks(SHAPE, asked.steps, asked.rounds)
    trained = trainings(TASKS, asked.steps, asked.rounds)
    about = conditions(asked.steps, asked.rounds)
    block = f"{tables(walked, trained)}\n\n{notes(about)}"
    print(block)
    if asked.write:
        write(block, walked + trained, about, HERE.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
