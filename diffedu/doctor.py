"""`diffedu doctor`: what this machine has, and what to do about what is missing.

Nothing is imported before it is looked at, so that the doctor can report a broken
installation too: `python -P diffedu/doctor.py` works where `import diffedu` fails.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OLDEST_PYTHON = (3, 11)
INSTALL = 'pip install -c requirements/constraints.txt -e ".[notebooks]"'
MEMORY_NEEDED = 2.0  # GiB free; the largest of the first chapters takes less
RECEIPTS = Path(__file__).resolve().parent.parent / "docs" / "receipts"


class Finding(NamedTuple):
    """One line of the report: what was looked at, what was found, what to do."""

    name: str
    value: str
    remedy: str = ""
    needed: bool = False


def numbers(version: str) -> tuple[int, ...]:
    """The release of a version as numbers: "2.13.0+cpu" is (2, 13, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0]))


def parse_requirement(line: str) -> tuple[str, str, str] | None:
    """Name, lower bound and extra ("" for none) of `torch>=2.4; extra == "dev"`."""
    form = r"([\w.-]+)\s*>=\s*([\d.]+)(?:\s*;.*extra == ['\"](\w+)['\"])?"
    found = re.match(form, line)
    return (found[1], found[2], found[3] or "") if found else None


def check_package(name: str, bound: str, needed: bool) -> Finding:
    """Whether one package is there and new enough.

    Args:
        name: as the package index spells it.
        bound: the lowest version that serves.
        needed: whether the course does not run without it.
    """
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", INSTALL, needed)
    if numbers(version) < numbers(bound):
        return Finding(name, version, f"{bound} or newer is needed: {INSTALL}", needed)
    return Finding(name, version)


def versions() -> Iterator[Finding]:
    """Python's version and those of all packages that the notebooks use."""
    here = platform.python_version()
    old = "install Python 3.11 or newer" if sys.version_info < OLDEST_PYTHON else ""
    yield Finding("Python", f"{here} on {platform.platform()}", old, needed=True)
    try:
        lines = importlib.metadata.requires("diffedu") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("diffedu", "not installed", INSTALL, needed=True)
        return
    for line in lines:
        parsed = parse_requirement(line)
        if parsed and parsed[2] in ("", "notebooks"):
            yield check_package(parsed[0], parsed[1], needed=True)


def check_import() -> Finding:
    """Whether torch can be imported, which its being installed does not prove."""
    try:
        importlib.import_module("torch")
    except Exception as error:  # a broken build raises anything
        remedy = "install it again; on Windows the Visual C++ runtime may be missing"
        words = f"does not import: {type(error).__name__}: {error}"
        return Finding("import torch", words, remedy, needed=True)
    return Finding("import torch", "works")


def device() -> Finding:
    """The fastest device that torch can use here: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return Finding("device", f"cuda: {torch.cuda.get_device_name(0)}")
    if torch.backends.mps.is_available():
        return Finding("device", "mps: Apple GPU")
    if os.path.exists("/proc/driver/nvidia/version"):
        remedy = "an NVIDIA GPU is here, but this torch can't use it: see README.md"
        return Finding("device", "cpu", remedy)
    return Finding("device", f"cpu, {os.cpu_count()} cores (all chapters run on it)")


def memory() -> Finding:
    """Free and total memory, in GiB."""
    try:
        import psutil
    except ImportError:
        return Finding("memory", "unknown", "pip install psutil")
    stats = psutil.virtual_memory()
    free, total = stats.available / 2**30, stats.total / 2**30
    low = "close other programs, or one notebook before the next"
    value = f"{free:.1f} GiB free of {total:.1f}"
    return Finding("memory", value, low if free < MEMORY_NEEDED else "")


def speed(seconds: float = 5.0, device: str = "cpu") -> float:
    """Training steps a second of one small fixed workload, on one thread.

    The step is what the chapters spend their time on: forward, backward and AdamW of a
    small MLP on 512 points and of two convolutions on 64 images of 8x8.

    Args:
        seconds: how long to measure.
        device: "cpu", "cuda" or "mps".

    Returns:
        steps a second; receipts hold the same reading, so that times can be compared.

    Raises:
        ValueError: if `seconds` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; it must be positive, such as 5.0")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            step = _workload(device)
        for _ in range(3):
            step()
        return _rate(step, seconds)
    finally:
        torch.set_num_threads(threads)


def _workload(device: str):
    """The function that does one step of the fixed workload."""
    import torch
    from torch import nn

    mlp = nn.Sequential(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 2)).to(device)
    first, last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)
    conv = nn.Sequential(first, nn.SiLU(), last).to(device)
    points = torch.linspace(-1, 1, 1024, device=device).view(512, 2)
    pixels = torch.linspace(-1, 1, 4096, device=device).view(64, 1, 8, 8)
    weights = [*mlp.parameters(), *conv.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)

    def step() -> None:
        loss = (mlp(points) - points).square().mean()
        loss = loss + (conv(pixels) - pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a device that works in the background

    return step


def _rate(step, seconds: float) -> float:
    """Calls of `step` a second."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return max(count, 1) / spent


def chapters(here: float | None, folder: Path = RECEIPTS) -> Iterator[Finding]:
    """Expected minutes of each chapter on this machine, from the chapters' receipts.

    Args:
        here: this machine's `speed()`; None gives the recorded minutes as they are.
        folder: where the receipts lie, one JSON file a chapter.
    """
    for path in sorted(folder.glob("ch*.json")):
        try:
            receipt = json.loads(path.read_text(encoding="utf-8"))
            minutes = float(receipt["minutes"])
            peak = float(receipt.get("peak_memory_mb", 0))
            recorded = float(receipt.get("speed") or 0)
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            yield Finding(path.stem, "receipt unreadable", "git checkout docs/receipts")
            continue
        known = bool(here and recorded)
        expected = minutes * recorded / here if known else minutes
        where = "expected here" if known else "where it was recorded"
        yield Finding(path.stem, f"{expected:.1f} min {where}, {peak:.0f} MB")


def examine(fast: bool, seconds: float = 5.0) -> Iterator[Finding]:
    """All findings, in the order of the report.

    Args:
        fast: leave the speed reading out.
        seconds: how long the speed reading takes.
    """
    yield from versions()
    torch_works = check_import()
    yield torch_works
    yield memory()
    if torch_works.remedy:
        return
    yield device()
    reading = None if fast else speed(seconds)
    if reading is not None:
        yield Finding("speed", f"{reading:.0f} small training steps a second")
    yield from chapters(reading)


def main(fast: bool = False, seconds: float = 5.0) -> int:
    """Print the report.

    Args:
        fast: leave the speed reading out.
        seconds: how long the speed reading takes.

    Returns:
        1 if something that the course needs is missing, else 0.
    """
    wrong = []
    for finding in examine(fast, seconds):
        sign = "!!" if finding.remedy else "ok"
        print(f"{sign} {finding.name:28s} {finding.value}", flush=True)
        if finding.remedy:
            print(f"   -> {finding.remedy}")
            wrong.append(finding.needed)
    print("something needed is missing" if any(wrong) else "ready for the course")
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main(fast="--fast" in sys.argv[1:]))
