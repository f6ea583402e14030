"""Make .venv and install the course into it; called by the Makefile, runs anywhere.

Needs nothing but Python and its standard library. On Linux without an NVIDIA GPU it
takes the CPU build of torch, because the default build there brings gigabytes of CUDA.
"""

from __future__ import annotations

import argparse
import glob
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 4)
CHOICES = ("", "cpu", "default")  # of DIFFEDU_TORCH
# Pins that belong to one build of torch; left out where another build stays.
BUILD_PINS = re.compile(r"^(torch==|triton==|nvidia-|cuda-)")


def torch_sources(
    *,
    system: str,
    installed: str | None,
    nvidia: bool,
    find_links: str,
    choice: str = "",
) -> list[str]:
    """Where torch comes from, best first: "keep", "links", "cpu-index" or "default".

    Args:
        system: the name `platform.system()` gives, "Linux", "Darwin" or "Windows".
        installed: version of the torch that is there, None if there is none.
        nvidia: whether an NVIDIA GPU was found.
        find_links: pip's find-links, folders with wheels; "" if none is set.
        choice: "cpu" or "default" overrides the guess (DIFFEDU_TORCH), "" leaves it.

    Returns:
        the sources to try one after another.
    """
    if installed is not None and version_tuple(installed) >= OLDEST_TORCH:
        return ["keep"]
    wants_cpu = choice == "cpu" or (not choice and system == "Linux" and not nvidia)
    if not wants_cpu:
        return ["default"]
    return (["links"] if find_links else []) + ["cpu-index", "default"]


def version_tuple(text: str) -> tuple[int, ...]:
    """`"2.13.0+cpu"` as (2, 13, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3])


def without_torch(constraints: str) -> str:
    """The constraints without the pins of torch and of its CUDA parts."""
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if not BUILD_PINS.match(line))


def uv_environment(settings: dict[str, str], base: dict[str, str]) -> dict[str, str]:
    """Environment for uv that hands over what pip is told, for uv does not read it.

    Args:
        settings: pip's settings by name: find-links, index-url, extra-index-url, cert.
        base: the environment to start from; what it already says for uv stays.

    Returns:
        a new environment.
    """
    env = dict(base)
    names = {
        "find-links": "UV_FIND_LINKS",
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "cert": "SSL_CERT_FILE",
    }
    for ours, theirs in names.items():
        if settings.get(ours):
            env.setdefault(theirs, settings[ours])
    env["UV_FIND_LINKS"] = ",".join(env.get("UV_FIND_LINKS", "").split())
    # pip looks at all indexes for the best version, uv by itself only at the first.
    env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    env.setdefault("UV_LINK_MODE", "copy")
    return {k: v for k, v in env.items() if not (k == "UV_FIND_LINKS" and not v)}


def parse_pip_settings(text: str) -> dict[str, str]:
    """Settings from the output of `pip config list`; the environment's win.

    Args:
        text: lines such as `global.find-links='/wheels'`.

    Returns:
        settings by name; those for all commands, for `install`, and PIP_* variables.
    """
    found: dict[str, str] = {}
    for scope in ("global", "install", ":env:"):
        for line in text.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(scope + "."):
                key = name[len(scope) + 1 :].replace("_", "-")
                found[key] = value.strip().strip("'\"").replace("\\n", " ")
    return found


def has_local_torch(find_links: str) -> bool:
    """Whether some folder of `find_links` holds a wheel of torch (or is a web page)."""
    for place in find_links.replace(",", " ").split():
        if "://" in place and not place.startswith("file://"):
            return True
        folder = place[len("file://") :] if place.startswith("file://") else place
        if glob.glob(os.path.join(folder, "torch-*.whl")):
            return True
    return False


class Installer:
    """Runs pip, or uv where it can be had, in the environment's own Python."""

    def __init__(self, python: Path) -> None:
        self.python = python
        self.pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        listed = subprocess.run(
            [*self.pip, "config", "list"], capture_output=True, text=True
        )
        self.settings = parse_pip_settings(listed.stdout)
        self.uv = self._find_uv()

    def _find_uv(self) -> list[str]:
        """The command for uv, or [] where it can't be installed or is not wanted."""
        if os.environ.get("DIFFEDU_INSTALLER") == "pip":
            return []
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        done = subprocess.run([*self.pip, "install", "-q", "uv"], **quiet)
        return [str(self.python), "-m", "uv"] if done.returncode == 0 else []

    def install(self, *args: str) -> bool:
        """`install args` by uv, and by pip if that fails; False if both fail."""
        if self.uv:
            env = uv_environment(self.settings, dict(os.environ))
            command = [*self.uv, "pip", "install", "-q", "--python", str(self.python)]
            if subprocess.run([*command, *args], env=env).returncode == 0:
                return True
            print("uv did not manage; trying pip", flush=True)
        return subprocess.run([*self.pip, "install", "-q", *args]).returncode == 0

    def torch_version(self) -> str | None:
        """Version of the torch that is installed, None if there is none."""
        ask = "import importlib.metadata as m; print(m.version('torch'))"
        done = subprocess.run(
            [str(self.python), "-c", ask], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else None


def install_torch(installer: Installer, sources: list[str]) -> None:
    """Install torch from the first source that has it; leave "default" to the rest."""
    common = ["--no-deps", "-c", str(CONSTRAINTS), "torch"]
    options = {
        "links": ["--no-index", *common],
        "cpu-index": ["--index-url", CPU_INDEX, *common],
    }
    for source in sources:
        if source in ("keep", "default"):
            if source == "default" and sources != ["default"]:
                print(
                    "no CPU build within reach: the default build is large", flush=True
                )
            return
        print(f"torch: trying {source}", flush=True)
        if installer.install(*options[source]):
            return


def environment_python(folder: Path) -> Path:
    """The Python inside a virtual environment, on any system."""
    windows = platform.system() == "Windows"
    return folder / ("Scripts/python.exe" if windows else "bin/python")


def make_environment(folder: Path) -> Path:
    """Create the virtual environment if it is not there, and return its Python.

    Raises:
        SystemExit: if this Python is too old or can't make environments.
    """
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            "diffedu needs Python 3.11 or newer, this is "
            f"{platform.python_version()}; name another: make lab PYTHON=python3.12"
        )
    python = environment_python(folder)
    if not python.exists():
        print(f"making {folder.name}", flush=True)
        try:
            venv.create(folder, with_pip=True)
        except (subprocess.CalledProcessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            sys.exit(
                f"this Python can't make a virtual environment ({error}); "
                "on Debian or Ubuntu: apt install python3-venv"
            )
    return python


def main(argv: list[str] | None = None) -> int:
    """Set the environment up; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", type=Path)
    parser.add_argument("--extras", default="notebooks", help="such as dev,ref")
    args = parser.parse_args(argv)
    choice = os.environ.get("DIFFEDU_TORCH", "")
    if choice not in CHOICES:
        parser.error(f'DIFFEDU_TORCH is "{choice}"; accepted: cpu, default')
    folder = args.venv if args.venv.is_absolute() else ROOT / args.venv
    installer = Installer(make_environment(folder))
    links = installer.settings.get("find-links", "")
    sources = torch_sources(
        system=platform.system(),
        installed=installer.torch_version(),
        nvidia=shutil.which("nvidia-smi") is not None,
        find_links=links if has_local_torch(links) else "",
        choice=choice,
    )
    install_torch(installer, sources)
    return install_course(installer, args.extras, keep_torch=sources == ["keep"])


def install_course(installer: Installer, extras: str, keep_torch: bool) -> int:
    """Install diffedu, editable, with its extras; 0 if it worked."""
    text = CONSTRAINTS.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        kept = without_torch(text) if keep_torch else text
        constraints.write_text(kept, encoding="utf-8")
        print(f"installing diffedu[{extras}]", flush=True)
        target = f"{ROOT}[{extras}]"
        if installer.install("-c", str(constraints), "-e", target):
            return 0
    print(
        "the installation failed; is there a network, and room for 2 GB? "
        "README.md, 'When something fails', has more",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
