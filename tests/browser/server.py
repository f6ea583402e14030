"""JupyterLab on a copy of the course, with an empty home and a token of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COURSE = ("notebooks", "diffedu", "docs", "exercises", "README.md", "pyproject.toml")


class Wrong(AssertionError):
    """Something that a reader would stumble over."""


def is_root() -> bool:
    """Whether this runs as root, which Jupyter and Chromium want to be told."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def copy_course(folder: Path) -> Path:
    """A copy of the course, so that the committed files stay as they are."""
    for name in COURSE:
        place = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        if place.is_dir():
            shutil.copytree(place, folder / name, ignore=ignore)
        elif place.is_file():
            shutil.copy(place, folder / name)
    return folder


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def render_every_cell(folder: Path) -> None:
    """Have JupyterLab put all cells into the page, also those out of sight."""
    place = folder / "@jupyterlab" / "notebook-extension"
    place.mkdir(parents=True)
    text = '{"windowingMode": "none"}'
    (place / "tracker.jupyterlab-settings").write_text(text, encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """JupyterLab's: an empty home for settings, one thread, figures inside the page."""
    kept = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    homes = {
        f"JUPYTER_{name}_DIR": str(folder / "home" / name.lower())
        for name in ("CONFIG", "RUNTIME")
    }
    settings = folder / "home" / "lab"
    render_every_cell(settings / "settings")
    return kept | homes | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "workspaces"),
        "IPYTHONDIR": str(folder / "home" / "ipython"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder),
    }  # fmt: skip


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """JupyterLab on the copy; its address with the token in it."""
    token, port = secrets.token_hex(16), free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
    ]
    if is_root():
        command.append("--allow-root")
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment(folder), stdout=log, stderr=log
        )
    try:
        base = f"http://127.0.0.1:{port}"
        wait_for(f"{base}/api/status?token={token}", server, folder / "lab.log")
        yield f"{base}/lab/tree/{{notebook}}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers; Wrong if it ends, or says nothing for 90 s."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(180):
        if server.poll() is not None:
            break
        try:
            with direct.open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise Wrong(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
