"""Running a notebook for the build: one thread, no network, the same output twice."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import nbformat
from chapters import ROOT, Course
from imports import needed
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

PNG_BYTES = 60_000
WIDGET = "application/vnd.jupyter.widget-view+json"
COLOURS = (256, 128, 64)
PROBE = """
import json as _json, pathlib as _pathlib, sys as _sys, time as _time
def _peak():
    status = _pathlib.Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) / 1024
    import psutil
    return getattr(psutil.Process().memory_info(), "peak_wset", 0) / 2**20
_files = [getattr(m, "__file__", None) for m in list(_sys.modules.values())]
_pathlib.Path({path!r}).write_text(_json.dumps(
    dict(peak=_peak(), seconds=_time.process_time(),
         files=[f for f in _files if isinstance(f, str)])))
"""


class ChapterFailed(RuntimeError):
    """A chapter's cell that raised; the message names chapter, cell and error."""


@dataclass(frozen=True)
class Run:
    """What one execution showed.

    Attributes:
        minutes: of the processor, one thread, which other work on the machine hardly
            changes; on a GPU by the clock, from the first cell to the last.
        peak_memory_mb: of the kernel.
        files: library files it imported, relative to the library's folder.
        claims: what `claim` and `report` recorded.
    """

    minutes: float
    peak_memory_mb: float
    files: list[str]
    claims: list[dict[str, Any]]


def execute(nb: Any, script: Path, course: Course, device: str = "cpu") -> Run:
    """Run all cells of a notebook in place, in the script's folder.

    Args:
        nb: the notebook, whose cells get outputs and counts.
        script: where it comes from.
        course: where the library lies.
        device: what `claims.device()` answers.

    Raises:
        ChapterFailed: if a cell raises, or a picture can't be made small enough.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, probe = Path(folder, "claims.jsonl"), Path(folder, "probe.json")
        log.touch()
        start = time.perf_counter()
        nb.cells.append(nbformat.v4.new_code_cell(PROBE.format(path=str(probe))))
        try:
            _client(nb, script, 3600).execute(
                env=environment(log, device, course), stderr=DEVNULL
            )
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise ChapterFailed(_failure(nb, script, error)) from error
        finally:
            nb.cells.pop()
        seconds = time.perf_counter() - start
        found = json.loads(probe.read_text(encoding="utf-8"))
        seconds = found["seconds"] if device == "cpu" else seconds
        lines = log.read_text(encoding="utf-8").splitlines()
    _tidy(nb, script)
    return Run(
        round(seconds / 60, 2),
        round(found["peak"]),
        _library_files(nb, found["files"], course.library),
        [json.loads(line) for line in lines],
    )


def _client(nb: Any, script: Path, timeout: int) -> NotebookClient:
    return NotebookClient(
        nb,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(script.parent)}},
    )


def environment(log: Path, device: str, course: Course) -> dict[str, str]:
    """The kernel's environment: quiet, one thread, the network closed."""
    left_out = {"MPLBACKEND", "DIFFEDU_BUDGET", "PYTHONDONTWRITEBYTECODE"}
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    paths = [ROOT / "tests" / "no_network", course.library, kept.get("PYTHONPATH", "")]
    return kept | {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(str(p) for p in paths if str(p)),
        "DIFFEDU_RECORD": str(log),
        "DIFFEDU_DEVICE": device,
    }


def _failure(nb: Any, script: Path, error: Exception) -> str:
    place = f"{script.parent.name}/{script.name}"
    for number, cell in enumerate(nb.cells):
        for output in cell.get("outputs", []):
            allowed = "raises-exception" in cell.metadata.get("tags", [])
            if output.output_type == "error" and not allowed:
                code = cell.source.strip().split("\n")[0]
                reason = f"{output.ename}: {output.evalue}"
                return f"{place}, cell {number} (`{code}`): {reason}"
    return f"{place}: {type(error).__name__}: {error}"


def _tidy(nb: Any, script: Path) -> None:
    """Take out what differs between two runs, and make pictures small."""
    nb.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    drop_widgets(nb)
    for number, cell in enumerate(nb.cells):
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "error":  # its frames name this machine's folders
                output.traceback = output.traceback[-1:]
            png = output.get("data", {}).get("image/png")
            if png is None:
                continue
            small = shrink(base64.b64decode(png))
            if len(small) > PNG_BYTES:
                raise ChapterFailed(
                    f"{script.parent.name}/{script.name}, cell {number}: its picture "
                    f"takes {len(small) // 1000} kB after {COLOURS[-1]} colours, and "
                    f"{PNG_BYTES // 1000} are allowed; draw fewer points, or smaller"
                )
            output["data"]["image/png"] = base64.b64encode(small).decode()


def drop_widgets(nb: Any) -> None:
    """Take out widgets, progress bars among them: a page can't show them, ids vary."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.get("outputs"):
            shown = (o for o in cell.outputs if WIDGET not in o.get("data", {}))
            cell.outputs = list(shown)


def shrink(png: bytes) -> bytes:
    """The picture in as many colours as fit into the size that is allowed."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in COLOURS:
        target = io.BytesIO()
        flat = picture.quantize(colours, dither=Image.Dither.NONE)
        flat.save(target, "PNG", optimize=True)
        if target.tell() <= PNG_BYTES:
            break
    return target.getvalue()


def _library_files(nb: Any, loaded: list[str], library: Path) -> list[str]:
    """Library files that the kernel loaded and that the notebook's imports lead to."""
    codes = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    there = {Path(name).resolve() for name in loaded}
    names = needed(codes, library)
    return sorted(name for name in names if (library / name).resolve() in there)
