"""Side by side in one run: a sampler's step and error, a training step (`make bench`).

`--write` also puts the table into README.md and the numbers into results.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import accuracy
import torch
from accuracy import Accuracy, accuracies
from launches import GPU_TASK, MOST_ROUNDS, Launches, on_gpu
from side_by_side import Row
from trainings import TASKS, parameters, trainings
from walks import K_DIFFUSION, k_diffusion_sampling, walks

from diffedu import samplers

HERE = Path(__file__).resolve().parent
SHAPE = (64, 3, 32, 32)
THIRD_ORDER = (
    " Its 3M weighs the second derivative half as much as the Taylor series does: "
    "order 2 for many looks, but a smaller error where the parabola overshoots."
)
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


@dataclass(frozen=True)
class Results:
    """All that was measured.

    Attributes:
        walked: a sampler's own cost.
        exact: errors and times on the oracle.
        trained: training steps on the CPU.
        gpu: training steps on a GPU; empty where there is none.
        launches: shares of launches on a GPU; the same.
    """

    walked: Sequence[Row]
    exact: Sequence[Accuracy]
    trained: Sequence[Row]
    gpu: Sequence[Row] = ()
    launches: Sequence[Launches] = ()


def measured(steps: int, rounds: int) -> Results:
    """Everything, one after another: minutes."""
    walked = walks(SHAPE, steps, rounds)
    exact = accuracies(rounds)
    return Results(
        walked, exact, trainings(TASKS, steps, rounds), *on_gpu(steps, rounds)
    )


def ratio(row: Row) -> str:
    """The ratio of times with its quartiles."""
    return f"**{row.ratio:.2f}** ({row.low:.2f} to {row.high:.2f})"


def table(title: str, rows: Sequence[Row], spell: Callable[[float], str]) -> str:
    """The rows as a table in Markdown; `spell` writes a time in microseconds."""
    lines = [
        f"| {title} | beside | diffedu | the other | ratio of times (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        times = f"{spell(r.ours)} | {spell(r.theirs)}"
        lines.append(f"| {r.task} | {r.other} | {times} | {ratio(r)} |")
    return "\n".join(lines)


def accuracy_table(found: Sequence[Accuracy]) -> str:
    """Errors at equal numbers of looks, and the ratio of a look's times."""
    looks = ", ".join(map(str, found[0].looks))
    lines = [
        f"| error after {looks} looks at the oracle | beside | diffedu | the other | "
        "ratio of times (quartiles) |",
        "|---|---|---|---|---|",
    ]
    for a in found:
        both = (", ".join(f"{e:.3g}" for e in side) for side in (a.ours, a.theirs))
        lines.append(
            f"| {a.row.task} | {a.row.other} | {' | '.join(both)} | {ratio(a.row)} |"
        )
    return "\n".join(lines)


def launch_table(found: Sequence[Launches]) -> str:
    """The share of a training step in which the GPU waits for launches."""
    lines = ["| share of a step that is launches | loop | share |", "|---|---|---|"]
    lines += [f"| {one.task} | {one.loop} | {one.share:.0%} |" for one in found]
    return "\n".join(lines)


def tables(found: Results) -> str:
    """All tables: costs, errors, and training steps a second on CPU and GPU."""

    def rates(title: str, rows: Sequence[Row]) -> str:
        return table(title, rows, lambda us: f"{1e6 / us:.3g}")

    shown = [
        table("own cost of a step", found.walked, lambda us: f"{us:.0f} µs"),
        accuracy_table(found.exact),
        rates("steps a second", found.trained),
    ]
    if found.gpu:
        shown.append(rates("steps a second on a GPU, captured", found.gpu))
        shown.append(launch_table(found.launches))
    return "\n\n".join(shown)


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
        "oracle": oracle(),
        "parameters": sizes(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def oracle() -> dict[str, object]:
    """What the errors were measured with."""
    return {
        "points": accuracy.POINTS,
        "looks timed": accuracy.TIMED,
        "crowd": accuracy.CROWD,
        "distance between two crowds": accuracy.floor(),
        "third order": hasattr(samplers, "dpm_solver_pp_3m"),
    }


def sizes() -> dict[str, int]:
    """How many parameters the two U-Nets for 16 pixels have."""
    nets = {"diffedu": GPU_TASK.make, "diffusers": GPU_TASK.theirs}
    return {name: parameters(make()) for name, make in nets.items() if make}


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def notes(about: dict[str, object]) -> str:
    """What a reader must know to read the tables."""
    told = [general(about), errors_explained(about["oracle"]), unets(about)]
    return "\n\n".join(part for part in told if part)


def errors_explained(about: dict[str, object]) -> str:
    """How the errors on the oracle were measured."""
    return (
        "Errors: data from eight Gaussians on a ring (unit variance, each of standard "
        "deviation 0.1) on DDPM's chain of 1000, with their exact denoiser in float32. "
        f"Both sides start from the same {about['points']} points and stand at the "
        "same levels of noise: for DDIM and the ancestral sampler equal steps of the "
        "chain (trailing), else Karras' levels over all of the chain, then 0. Heun and "
        "DPM-Solver-2, with two looks a step, take one look fewer. An error is the "
        "root of the mean squared distance to where the exact ODE leads; the ancestral "
        "sampler's, with the same noise on both sides, is the sliced Wasserstein-1 "
        f"distance of {about['crowd']} points to as many from the mixture (two such "
        f"draws are {about['distance between two crowds']:.2g} apart). The ratio is of "
        f"processor times of {about['looks timed']} looks, the oracle's own included. "
        "diffusers' walks are told the exact level of noise, where its pipelines pass "
        "the nearest index for some of them. Its DPM-Solver-2 is "
        "`KDPM2DiscreteScheduler`; its singlestep solver of order 2, DPM-Solver++ 2S, "
        "is another method, and stands here as what it offers for two looks a step."
        f"{THIRD_ORDER if about['third order'] else ''}"
    )


def unets(about: dict[str, object]) -> str:
    """What the rows of the U-Nets compare, and where those of a GPU are."""
    sizes = " and ".join(f"{n:,} ({name})" for name, n in about["parameters"].items())
    said = [
        'Trainings: "by hand" is the plain eager loop with the same network; '
        "diffusers' U-Net is trained by `fit`, as ours is, with the same settings. "
        f"The networks for 16 pixels have {sizes} parameters."
    ]
    if about["gpu"]:
        said.append(
            f"On {about['gpu']}: wall time of at most {MOST_ROUNDS} rounds, our "
            "captured loop beside each other one. What is launches is the share of a "
            "step's wall time in which no kernel runs."
        )
    else:
        said.append(
            "Rows of a GPU, with and without the captured graph and the share of a "
            "step that is launches, appear where there is one; here there was none."
        )
    return " ".join(said)


def general(about: dict[str, object]) -> str:
    """What holds for all tables, and for that of costs."""
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


def write(block: str, found: Results, about: dict[str, object], folder: Path) -> None:
    """Put the block into the folder's README.md, the numbers into results.json."""
    readme = folder / "README.md"
    readme.write_text(insert(readme.read_text("utf-8"), block), "utf-8")
    content = {"with": about, "rows": [*found.walked, *found.trained]}
    content |= {"accuracy": found.exact, "gpu": found.gpu, "launches": found.launches}
    numbers = json.dumps(content, indent=1, default=asdict)
    (folder / "benchmarks" / "results.json").write_text(numbers + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of a walk or training")
    parser.add_argument("--rounds", type=int, default=31, help="odd, for a median")
    parser.add_argument("--write", action="store_true", help="README and results.json")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = measured(asked.steps, asked.rounds)
    about = conditions(asked.steps, asked.rounds)
    block = f"{tables(found)}\n\n{notes(about)}"
    print(block)
    if asked.write:
        write(block, found, about, HERE.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
