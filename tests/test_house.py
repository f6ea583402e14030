"""The house: dependencies, set-up decisions, the audit and the figures' look."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import stat
import subprocess
import sys
import tomllib
import warnings
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import diffedu

ROOT = Path(__file__).resolve().parent.parent
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def load_tool(name: str) -> ModuleType:
    """Import a script of tools/."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup_env() -> ModuleType:
    return load_tool("setup_env")


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return load_tool("audit")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(lines: list[str]) -> dict[str, str]:
    """Names and ranges; references to the package's own extras are left out."""
    packaging = pytest.importorskip("packaging.requirements")
    found = [packaging.Requirement(x) for x in lines if not x.startswith("diffedu[")]
    return {r.name.lower(): str(r.specifier) for r in found}


def everything(project: dict) -> dict[str, str]:
    extras = project["project"]["optional-dependencies"].values()
    lines = project["project"]["dependencies"] + [x for extra in extras for x in extra]
    return requirements(lines)


# Dependencies


def test_conda_environment_follows_pyproject(project):
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"]
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    nested = [d for d in environment["dependencies"] if isinstance(d, dict)]
    assert nested == [{"pip": ["-e ."]}]
    form = re.compile(r"([a-z0-9_.-]+)(>=[0-9.]+)?")
    pairs = [form.fullmatch(line) for line in plain]
    assert all(pairs), plain
    have = {m[1]: m[2] or "" for m in pairs}
    assert have.pop("python") == project["project"]["requires-python"]
    assert have.pop("pip") == ""
    extras = project["project"]["optional-dependencies"]
    lines = project["project"]["dependencies"] + extras["notebooks"] + extras["dev"]
    want = {CONDA.get(k, k): v for k, v in requirements(lines).items()}
    assert have == want


def test_pyproject_has_ranges_and_no_pins(project):
    ranges = everything(project)
    assert all(re.fullmatch(r">=[0-9.]+", r) for r in ranges.values()), ranges


def constraints() -> dict[str, str]:
    text = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    lines = [x for x in text.splitlines() if x and not x.lstrip().startswith("#")]
    pins = (re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lines)
    return {m[1].lower(): m[2] for m in pins}


def test_constraints_satisfy_the_ranges(project):
    specifiers = pytest.importorskip("packaging.specifiers")
    pins = constraints()
    for name, bound in everything(project).items():
        assert name in pins, f"{name} is not in requirements/constraints.txt: make lock"
        assert specifiers.SpecifierSet(bound).contains(pins[name]), (name, pins[name])


def test_constraints_name_no_local_build_and_no_path():
    text = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    assert "+" not in "".join(constraints().values())
    assert "/" not in text and "find-links" not in text


def test_core_imports_only_what_the_course_installs(audit):
    [row] = audit.imports(audit.read(ROOT, "diffedu/**/*.py"))
    assert row.excess == []


def test_library_seeds_nothing_globally(audit):
    seeding = re.compile(
        r"torch\.(cuda\.)?(manual_seed|seed)\(|np\.random\.|random\.seed"
    )
    for source in audit.read(ROOT, "diffedu/**/*.py"):
        assert not seeding.search(source.text), source.name


def test_continuous_integration_runs_the_readers_command():
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text and re.search(r"^make test$", text, re.MULTILINE)
    assert script.stat().st_mode & stat.S_IXUSR


def test_every_target_of_the_makefile_is_explained():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    joined = text.replace("\\\n", " ")
    phony = set(re.search(r"^\.PHONY:(.*)$", joined, re.MULTILINE)[1].split())
    explained = set(re.findall(r"^([a-z-]+):.*?## \S", text, re.MULTILINE))
    assert phony == explained
    assert "/opt/" not in text and "/home/" not in text


def test_pre_commit_hooks_use_the_projects_own_tools():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = yaml.safe_load(text)["repos"][0]["hooks"]
    entries = " ".join(hook["entry"] for hook in hooks)
    assert "ruff check" in entries and "ruff format" in entries
    assert all(hook["language"] == "system" for hook in hooks)


# Set-up


def sources(setup_env, **changes):
    case = {"system": "Linux", "installed": None, "nvidia": False, "find_links": ""}
    return setup_env.torch_sources(**{**case, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["cpu-index", "default"]),
        ({"find_links": "/wheels"}, ["links", "cpu-index", "default"]),
        ({"nvidia": True}, ["default"]),
        ({"nvidia": True, "choice": "cpu"}, ["cpu-index", "default"]),
        ({"choice": "default"}, ["default"]),
        ({"system": "Darwin"}, ["default"]),
        ({"system": "Windows"}, ["default"]),
        ({"system": "Windows", "choice": "cpu"}, ["cpu-index", "default"]),
        ({"installed": "2.13.0+cpu"}, ["keep"]),
        ({"installed": "2.4"}, ["keep"]),
        ({"installed": "2.3.1"}, ["cpu-index", "default"]),
        ({"installed": "2.10.0", "nvidia": True}, ["keep"]),
    ],
)
def test_where_torch_comes_from(setup_env, changes, expected):
    assert sources(setup_env, **changes) == expected


def test_unknown_choice_of_torch_is_refused(setup_env, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DIFFEDU_TORCH", "gpu")
    with pytest.raises(SystemExit) as stop:
        setup_env.main(["--venv", str(tmp_path / "venv")])
    assert stop.value.code == 2
    assert "accepted: cpu, default" in capsys.readouterr().err
    assert not (tmp_path / "venv").exists()


def test_setup_asks_for_the_course_with_its_extras(setup_env, monkeypatch, tmp_path):
    asked = []

    class Pip(FakeInstaller):
        settings = {"find-links": ""}

        def __init__(self, python: Path) -> None:
            super().__init__({"cpu-index"})

        def torch_version(self) -> str:
            return "2.9.1"

        def install(self, *args: str) -> bool:
            asked.append((args, Path(args[1]).read_text(encoding="utf-8")))
            return True

    monkeypatch.setattr(setup_env, "make_environment", lambda folder: folder)
    monkeypatch.setattr(setup_env, "Installer", Pip)
    monkeypatch.delenv("DIFFEDU_TORCH", raising=False)
    assert setup_env.main(["--venv", str(tmp_path), "--extras", "dev,ref"]) == 0
    [(args, constraints)] = asked
    assert args[2:] == ("-e", f"{ROOT}[dev,ref]")
    assert "torchmetrics==" in constraints and "\ntorch==" not in constraints


def test_lower_bounds_in_the_script_are_pyprojects(setup_env, project):
    oldest = ".".join(map(str, setup_env.OLDEST_TORCH))
    assert f"torch>={oldest}" in project["project"]["dependencies"]
    python = ".".join(map(str, setup_env.OLDEST_PYTHON))
    assert project["project"]["requires-python"] == f">={python}"


def test_kept_torch_is_not_constrained(setup_env):
    text = "numpy==2.0\ntorch==2.13.0\ntorchmetrics==1.9\ntriton==3.7\n"
    text += "nvidia-nvtx==13.0 ; sys_platform == 'linux'\ncuda-toolkit==13\n"
    assert setup_env.without_torch(text) == "numpy==2.0\ntorchmetrics==1.9\n"


def test_uv_is_told_what_pip_is_told(setup_env):
    listed = (
        ":env:.find-links='/a /b'\nglobal.cert='/c.pem'\nglobal.find-links='/x'\n"
        "global.extra-index-url='https://one https://two'\n:env:.no-cache='1'\n"
    )
    settings = setup_env.parse_pip_settings(listed)
    assert settings["find-links"] == "/a /b"
    env = setup_env.uv_environment(settings, {"PATH": "p", "SSL_CERT_FILE": "mine"})
    assert env["UV_FIND_LINKS"] == "/a,/b"
    assert env["UV_INDEX"] == "https://one https://two"
    assert env["SSL_CERT_FILE"] == "mine" and env["PATH"] == "p"


def test_uv_gets_no_empty_settings(setup_env):
    env = setup_env.uv_environment({}, {})
    assert "UV_FIND_LINKS" not in env and "UV_INDEX" not in env


def test_find_links_count_only_with_a_wheel_of_torch(setup_env, tmp_path):
    assert not setup_env.has_local_torch("")
    assert not setup_env.has_local_torch(str(tmp_path))
    assert setup_env.has_local_torch("https://example.org/wheels")
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert setup_env.has_local_torch(f"/nowhere {tmp_path}")
    assert setup_env.has_local_torch(tmp_path.as_uri())


class FakeInstaller:
    """Stands for pip: some sources work, and what was asked is remembered."""

    def __init__(self, works: set[str]) -> None:
        self.works, self.asked = works, []

    def install(self, *args: str) -> bool:
        source = "links" if "--no-index" in args else "cpu-index"
        self.asked.append(source)
        return source in self.works


@pytest.mark.parametrize(
    ("works", "asked"),
    [
        ({"links"}, ["links"]),
        ({"cpu-index"}, ["links", "cpu-index"]),
        (set(), ["links", "cpu-index"]),
    ],
)
def test_torch_falls_back_from_source_to_source(setup_env, capsys, works, asked):
    installer = FakeInstaller(works)
    setup_env.install_torch(installer, ["links", "cpu-index", "default"])
    assert installer.asked == asked
    assert ("large" in capsys.readouterr().out) == (not works)


def test_kept_torch_installs_nothing(setup_env):
    installer = FakeInstaller(set())
    setup_env.install_torch(installer, ["keep"])
    assert installer.asked == []


def test_failed_installation_says_what_to_try(setup_env, capsys):
    assert setup_env.install_course(FakeInstaller(set()), "dev", keep_torch=False) == 1
    assert "network" in capsys.readouterr().err


def test_old_python_is_told_how_to_name_another(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"make lab PYTHON="):
        setup_env.make_environment(tmp_path / "venv")


def test_python_without_venv_is_told_the_package(setup_env, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(setup_env.venv, "create", broken)
    with pytest.raises(SystemExit, match="python3-venv"):
        setup_env.make_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_setup_script_needs_only_the_standard_library(audit):
    [source] = audit.read(ROOT, "tools/setup_env.py")
    names = set(re.findall(r"^(?:from|import) (\w+)", source.text, re.MULTILINE))
    assert names <= set(sys.stdlib_module_names)


# The network is closed


def test_tests_reach_no_network():
    from closed_network import NetworkClosed

    with pytest.raises(NetworkClosed, match="example.org"):
        socket.create_connection(("example.org", 80), timeout=1)
    with socket.socket() as each, pytest.raises(NetworkClosed):
        each.connect(("192.0.2.1", 80))


def test_tests_reach_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            assert client.getpeername() == server.getsockname()


# The audit finds planted excess


def plant(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def excess(rows, name: str) -> list[str]:
    [row] = [r for r in rows if r.name == name]
    return row.excess


def library(audit, root: Path, text: str):
    plant(root, **{"diffedu__samplers.py": text})
    return audit.read(root, "diffedu/**/*.py")


def test_audit_finds_a_wide_line(audit, tmp_path):
    rows = audit.line_width(library(audit, tmp_path, "x = 1\ny = '" + "a" * 90 + "'\n"))
    assert excess(rows, "widest line") == ["diffedu/samplers.py:2 has 96"]
    assert excess(rows, "lines within 80")
    assert [r.fails for r in rows] == [True, False]


def long_function(lines: int) -> str:
    doc = '    """Doc.\n\n    More.\n    """\n    # why\n\n'
    return "def f():\n" + doc + "".join(f"    x{i} = {i}\n" for i in range(lines))


@pytest.mark.parametrize(("lines", "found"), [(40, 0), (41, 1)])
def test_audit_finds_a_long_function(audit, tmp_path, lines, found):
    sources = library(audit, tmp_path, long_function(lines))
    for rows in (
        audit.function_length(sources, []),
        audit.function_length([], sources),
    ):
        assert len(excess(rows, "longest function body")) == found


def test_audit_sees_methods_and_nested_functions(audit, tmp_path):
    inner = long_function(41).replace("\n", "\n        ")
    text = f"class A:\n    def m(self):\n        {inner}\n        return f\n"
    rows = audit.function_length(library(audit, tmp_path, text), [])
    assert len(excess(rows, "longest function body")) == 2


def test_audit_counts_code_and_neither_docstrings_nor_comments(audit, tmp_path):
    text = '"""Doc."""\n\n# why\nx = """no\ndocstring"""\n' + long_function(3)
    [source] = library(audit, tmp_path, text)
    assert audit.code_lines(source) == 2 + 1 + 3


def test_audit_finds_long_files_and_a_large_core(audit, tmp_path):
    rows = audit.file_length(library(audit, tmp_path, "x = 1\n" * 701))
    assert excess(rows, "longest library file") == ["diffedu/samplers.py: 701"]
    assert excess(rows, "code of the core") == ["diffedu/samplers.py: 701"]


def test_audit_counts_packages_of_the_core_and_no_other_room(audit, tmp_path):
    plant(tmp_path, diffedu__samplers__a="", diffedu__worlds__b="")
    (tmp_path / "diffedu/samplers/a").rename(tmp_path / "diffedu/samplers/a.py")
    (tmp_path / "diffedu/worlds/b").rename(tmp_path / "diffedu/worlds/b.py")
    for folder in ("samplers", "worlds"):
        (tmp_path / f"diffedu/{folder}").joinpath("c.py").write_text("x = 1\n" * 400)
    rows = audit.file_length(audit.read(tmp_path, "diffedu/**/*.py"))
    assert [r.value for r in rows] == ["400", "400"]


def test_audit_finds_missing_docstrings_types_and_shapes(audit, tmp_path):
    text = (
        "def bare(x: int): pass\n"
        'def untyped(y) -> None:\n    """Doc."""\n'
        'def shapeless(x: Tensor) -> Tensor:\n    """Doc of x."""\n'
        'def good(x: Tensor) -> Tensor:\n    """Doc of x, shape (B, D)."""\n'
        "def _private(z): pass\n"
        "class C:\n    def __init__(self, q): pass\n"
        '    def method(self) -> None:\n        """Doc."""\n'
    )
    rows = audit.documentation(library(audit, tmp_path, text))
    assert excess(rows, "public docstrings") == [
        "diffedu/samplers.py bare",
        "diffedu/samplers.py C",
    ]
    assert excess(rows, "typed arguments") == ["diffedu/samplers.py untyped(y)"]
    assert excess(rows, "tensors with shapes") == ["diffedu/samplers.py shapeless"]


def test_audit_finds_a_foreign_import(audit, tmp_path):
    text = "import torch\nfrom . import x\nimport os.path\n"
    text += "def f():\n    import scipy.stats\n"
    rows = audit.imports(library(audit, tmp_path, text))
    assert excess(rows, "imports outside the list") == ["diffedu/samplers.py:5 scipy"]


def test_audit_reads_code_that_names_outer_variables(audit, tmp_path):
    text = "def f():\n    n = 0\n\n    def g():\n        nonlocal n\n    g()\n"
    rows = audit.imports(library(audit, tmp_path, text))
    assert excess(rows, "imports outside the list") == []


def test_audit_finds_long_cells_and_too_little_prose(audit, tmp_path):
    cell = "# %%\n" + "x = 1\n" * 19
    text = "# %% [markdown]\n# four words of prose\n\n" + cell
    plant(tmp_path, **{"notebooks__ch01_x.py": text})
    rows = audit.cells(tmp_path)
    assert excess(rows, "cells within 18 lines") == ["ch01_x.py cell 1: 19"]
    assert excess(rows, "median code cell")
    assert excess(rows, "words of prose a code cell") == ["ch01_x.py: 4"]


def test_audit_finds_a_large_checkpoint(audit, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(bytes(5_100_000))
    rows = audit.checkpoints(tmp_path)
    assert excess(rows, "largest checkpoint") == ["net.safetensors: 5.1 MB"]
    assert excess(rows, "checkpoints in all") == []


def test_audit_fails_only_for_what_must_hold(audit, tmp_path, capsys):
    plant(tmp_path, **{"diffedu__a.py": "x = 1\n" * 300, "README.md": "[a](#a)\n# A\n"})
    assert audit.main(["--root", str(tmp_path)]) == 0
    assert "diffedu/a.py: 300" in capsys.readouterr().out
    plant(tmp_path, **{"README.md": "[gone](docs/gone.md)\n"})
    assert audit.main(["--root", str(tmp_path)]) == 1
    assert "README.md: docs/gone.md" in capsys.readouterr().out


def test_nothing_here_exceeds_what_must_hold(audit):
    rows = [r for r in audit.audit(ROOT) if r.fails and r.name != "dead links"]
    assert {r.name: r.excess for r in rows if r.excess} == {}


# The figures' look


def linear_rgb(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )


# Red-green blindness in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ rgb.clip(0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_one_figure_can_be_told_apart(vision):
    from diffedu.palette import GROUPS

    for name, group in GROUPS.items():
        seen = {k: lab(VISION[vision] @ linear_rgb(c)) for k, c in group.items()}
        for a, b in combinations(seen, 2):
            assert np.linalg.norm(seen[a] - seen[b]) > 10, (name, a, b)


def test_lines_stand_out_from_the_background():
    from diffedu.palette import COLOURS, YELLOW

    for name, colour in COLOURS.items():
        luminance = TO_XYZ[1] @ linear_rgb(colour)
        if colour != YELLOW:  # one class in ten; never a line
            assert 1.05 / (luminance + 0.05) > 2.0, name


@pytest.fixture
def look():
    import matplotlib.pyplot as plt

    from diffedu import style

    with plt.rc_context():
        style.use()
        yield style
        plt.close("all")


def test_look_is_opaque_and_its_fonts_are_there(look):
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, ax = plt.subplots()
        ax.plot([0, 1], [0, -1], label=r"$\bar\alpha_t$ α σ ε")
        ax.set_title("Heun halves the error")
        picture = look.png(figure)
    pixels = plt.imread(__import__("io").BytesIO(picture))
    assert picture.startswith(b"\x89PNG") and np.all(pixels[..., 3] == 1)
    assert pixels[0, 0, :3].min() == 1


def test_one_name_has_one_colour(look):
    assert look.colour("ddpm") == look.colour("ancestral")
    with pytest.raises(ValueError, match='did you mean "heun"'):
        look.colour("huen")


def test_scatter_takes_points_of_the_plane(look):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    look.scatter(ax, torch.zeros(5, 2, requires_grad=True), "data", limit=3, title="T")
    assert ax.get_xlim() == (-3, 3) and ax.get_title("left") == "T"
    assert ax.collections[0].get_offsets().shape == (5, 2)
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(N, 2\)"):
        look.scatter(ax, torch.zeros(5, 3))


def test_grid_lays_images_out_row_by_row(look):
    batch = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2) / 2 - 1
    picture = look.grid(batch, columns=3, gap=1)
    assert picture.shape == (5, 8, 3)
    assert picture[0, [0, 3, 6], 0].tolist() == [0, 0.25, 0.5]
    assert picture[3, [0, 3, 6], 0].tolist() == [0.75, 1, 1]
    assert np.all(picture[2] == 1)


@pytest.mark.parametrize(
    ("shape", "columns", "message"),
    [((0, 1, 8, 8), 4, "B > 0"), ((2, 8, 8), 4, "shape"), ((1, 1, 2, 2), 0, "columns")],
)
def test_grid_refuses_what_is_no_batch_of_images(look, shape, columns, message):
    with pytest.raises(ValueError, match=message):
        look.grid(torch.zeros(shape), columns)


def test_images_draws_one_picture(look):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    look.images(ax, torch.zeros(4, 3, 8, 8), columns=2, title="grey")
    assert ax.images[0].get_array().shape == (17, 17, 3)


def test_labels_stand_at_the_lines_ends_and_apart(look):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    ax.plot([0, 1, 2], [0, 1, np.nan], label="short", color="#0072B2")
    ax.plot([0, 1, 2], [0, 1, 1.0], label="long")
    ax.plot([0, 2], [0, 0])
    look.label_lines(ax, {"long": "the long one"})
    figure.canvas.draw()
    texts = {t.get_text(): t for t in ax.texts}
    assert set(texts) == {"short", "the long one"}
    assert texts["short"].xy == (1, 1) and texts["short"].get_color() == "#0072B2"
    boxes = [t.get_window_extent() for t in ax.texts]
    assert not boxes[0].overlaps(boxes[1])


def test_line_without_points_is_named(look):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    ax.plot([0, 1], [np.nan, np.nan], label="lost")
    with pytest.raises(ValueError, match="lost"):
        look.label_lines(ax)


def test_show_carries_the_description(look, monkeypatch):
    import IPython.display
    import matplotlib.pyplot as plt

    shown = []
    keep = lambda *a, **k: shown.append((a, k))  # noqa: E731
    monkeypatch.setattr(IPython.display, "display", keep)
    monkeypatch.setattr(look, "_in_notebook", lambda: True)
    figure, _ = plt.subplots()
    look.show(figure, "An empty plot.")
    [((data,), options)] = shown
    assert data["text/plain"] == "An empty plot." and data["image/png"].isascii()
    assert options["metadata"] == {"image/png": {"alt": "An empty plot."}}
    assert plt.get_fignums() == []


def test_show_outside_a_notebook_closes_and_wants_a_description(look):
    import matplotlib.pyplot as plt

    figure, _ = plt.subplots()
    with pytest.raises(ValueError, match="alt is empty"):
        look.show(figure, "  ")
    look.show(figure, "An empty plot.")
    assert plt.get_fignums() == []


def test_notebook_is_told_from_plain_python(look, monkeypatch):
    import IPython

    assert not look._in_notebook()
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    assert look._in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not look._in_notebook()


# The notation page


def test_notation_page_is_the_table():
    from diffedu.notation import markdown

    page = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: diffedu notation --markdown > docs/notation.md"


def test_notation_uses_each_letter_once():
    from diffedu.notation import TABLE

    maths = [row.maths for rows in TABLE.values() for row in rows]
    assert len(maths) == len(set(maths))
    rows = [row for rows in TABLE.values() for row in rows]
    assert all(row.plain and row.meaning for row in rows)


def test_citation_file_is_complete():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = yaml.safe_load(text)
    needed = {"cff-version", "message", "title", "authors", "license", "version"}
    assert needed <= set(citation)
    assert json.dumps(citation["authors"]).count("diffedu") == 1


def test_versions_agree(project):
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    version = project["project"]["version"]
    assert yaml.safe_load(text)["version"] == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert version in changes and "## Errata" in changes
    assert diffedu.__version__ == version


def test_readme_opens_with_the_two_commands_and_has_its_parts():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("make lab") < text.index("make test") < 250
    for mark in ("chapters", "benchmarks"):
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        assert text.count(begin) == text.count(end) == 1
        assert text.index(begin) < text.index(end)
    assert 8 <= text.count("<summary>Answer</summary>") <= 10


def test_readme_names_only_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"(?:`|^|&& |=\w+ )make ([a-z][a-z-]*)", text, re.MULTILINE)
        assert named and set(named) <= targets, page
