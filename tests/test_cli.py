"""The command `diffedu` and what the doctor says, healthy machine or not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from diffedu import cli, doctor


def said(findings) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


# Command line


@pytest.mark.parametrize(
    ("word", "hint"),
    [("docter", 'did you mean "doctor"'), ("zzz", "accepted: doctor, notation")],
)
def test_unknown_command_suggests_another(capsys, word, hint):
    assert cli.main([word]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["notation", "--nonsense"]])
def test_wrong_words_end_with_two(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err


def test_words_come_from_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffedu", "notation"])
    assert cli.main() == 0
    assert "alpha_bar" in capsys.readouterr().out


def test_notation_as_a_page(capsys):
    assert cli.main(["notation", "--markdown"]) == 0
    page = Path(__file__).parent.parent / "docs" / "notation.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")


@pytest.fixture
def figures(monkeypatch):
    """A stand-in for diffedu.figures that remembers what it was asked."""
    asked = []
    module = ModuleType("diffedu.figures")
    module.list_figures = lambda: asked.append("list") or 0
    module.make_figures = lambda *args: asked.append(args) or 3
    monkeypatch.setitem(sys.modules, "diffedu.figures", module)
    monkeypatch.setattr(cli, "_exists", lambda name: True)
    return asked


def test_figures_lists_without_names(figures):
    assert cli.main(["figures"]) == 0
    assert figures == ["list"]


def test_figures_makes_what_is_named(figures):
    words = ["figures", "F14", "F15", "--out", "o", "--budget", "full"]
    assert cli.main([*words, "--device", "cuda"]) == 3
    assert figures == [(["F14", "F15"], Path("o"), "full", "cuda")]


def test_figures_all(figures):
    assert cli.main(["figures", "--all"]) == 3
    assert figures == [([], Path("figures"), "laptop", "cpu")]


def test_train_hands_its_names_on(monkeypatch):
    module = ModuleType("diffedu.recipes")
    module.main = lambda names, device, fresh: len(names)
    monkeypatch.setitem(sys.modules, "diffedu.recipes", module)
    monkeypatch.setattr(cli, "_exists", lambda name: True)
    assert cli.main(["train", "digits"]) == 1


def test_commands_without_a_module_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_exists", lambda name: False)
    assert cli.main(["train"]) == 2
    assert "unknown" in capsys.readouterr().err


def test_errors_are_told_in_one_line(figures, monkeypatch, capsys):
    def broken() -> int:
        raise ValueError('figure "F999" is unknown')

    sys.modules["diffedu.figures"].list_figures = broken
    assert cli.main(["figures"]) == 1
    assert capsys.readouterr().err == 'diffedu: figure "F999" is unknown\n'


# Doctor


def test_doctor_finds_this_environment_healthy(capsys):
    assert cli.main(["doctor", "--fast"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "ready for the course" in out
    assert "training steps a second" not in out


def test_doctor_reads_the_speed(capsys):
    assert doctor.main(seconds=0.02) == 0
    assert "training steps a second" in capsys.readouterr().out


def test_missing_package_has_a_remedy_and_fails(monkeypatch, capsys):
    lines = ["no-such-package>=1.0", "numpy>=999", 'pytest>=999; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    found = said(doctor.versions())
    assert found["no-such-package"].value == "missing"
    assert "pip install" in found["no-such-package"].remedy
    assert "999 or newer" in found["numpy"].remedy
    assert "pytest" not in found
    assert doctor.main(fast=True) == 1
    assert "something needed is missing" in capsys.readouterr().out


def test_package_that_is_not_installed_itself(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert said(doctor.versions())["diffedu"].needed


def test_old_python_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 0))
    assert "3.11" in said(doctor.versions())["Python"].remedy


def test_broken_torch_is_found_and_the_rest_left_out(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('WinError 126')")
    script = Path(doctor.__file__)
    done = subprocess.run(
        [sys.executable, "-P", str(script), "--fast"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "WinError 126" in done.stdout and "Visual C++" in done.stdout
    assert "device" not in done.stdout


def test_import_check_names_the_error(monkeypatch):
    def broken(name):
        raise OSError("libtorch is gone")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = doctor.check_import()
    assert found.needed and "libtorch is gone" in found.value
    findings = list(doctor.examine(fast=True))
    assert findings[-1].name == "memory"


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Some GPU")
    assert doctor.device().value == "cuda: Some GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert doctor.device().value.startswith("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: True)
    assert "can't use it" in doctor.device().remedy
    monkeypatch.setattr(doctor.os.path, "exists", lambda path: False)
    assert doctor.device().value.startswith("cpu")


def test_little_memory_has_a_remedy(monkeypatch):
    import psutil

    stats = SimpleNamespace(available=2**29, total=2**33)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: stats)
    found = doctor.memory()
    assert found.value == "0.5 GiB free of 8.0" and "close" in found.remedy
    assert not found.needed
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert doctor.memory().remedy == "pip install psutil"


def test_speed_leaves_threads_alone_and_wants_time():
    before = torch.get_num_threads()
    assert doctor.speed(0.01) > 0
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="positive"):
        doctor.speed(0)
    with pytest.raises(ValueError, match="positive"):
        doctor.speed(float("nan"))


def test_speed_draws_nothing_that_others_see():
    state = torch.random.get_rng_state()
    doctor.speed(0.01)
    assert torch.equal(torch.random.get_rng_state(), state)


def write(folder: Path, name: str, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def test_minutes_are_scaled_by_speed(tmp_path):
    receipt = {"minutes": 2.0, "peak_memory_mb": 700, "speed": 300}
    write(tmp_path, "ch01_noise", receipt)
    [found] = doctor.chapters(600, tmp_path)
    assert found.value == "1.0 min expected here, 700 MB"
    [found] = doctor.chapters(None, tmp_path)
    assert found.value == "2.0 min where it was recorded, 700 MB"
    write(tmp_path, "ch01_noise", {"minutes": 2.0})
    [found] = doctor.chapters(600, tmp_path)
    assert "where it was recorded" in found.value


@pytest.mark.parametrize("content", ["{", "[]", '{"minutes": null}', "{}"])
def test_broken_receipt_is_reported(tmp_path, content):
    write(tmp_path, "ch01_noise", content)
    [found] = doctor.chapters(600, tmp_path)
    assert found.value == "receipt unreadable" and found.remedy


def test_no_receipts_no_chapters(tmp_path):
    assert list(doctor.chapters(600, tmp_path / "none")) == []


def test_requirements_are_read():
    assert doctor.parse_requirement("torch>=2.4") == ("torch", "2.4", "")
    line = 'jupyterlab>=4.2; extra == "notebooks"'
    assert doctor.parse_requirement(line) == ("jupyterlab", "4.2", "notebooks")
    assert doctor.parse_requirement('diffedu[notebooks]; extra == "dev"') is None
