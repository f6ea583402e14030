"""The registry of figures, and making one by running the chapter that owns it."""

from __future__ import annotations

import json
import re

import pytest

from diffedu import figures
from diffedu.figures import FIGURES, list_figures, make_figures

SCRIPT = """
# %%
import matplotlib.pyplot as plt

from diffedu import claims
from diffedu.style import show

# %% tags=["F01"]
fig, ax = plt.subplots(figsize=(2, 2))
ax.plot([0, claims.budget(laptop=1, full=2)])
show(fig, "A rising line from nought to one.")
claims.claim("F01", "the line rises", True, end=claims.budget(laptop=1, full=2))

# %% tags=["F02"]
claims.claim("F02", "one is two", 1 == 2, one=1)

# %%
raise RuntimeError("this cell is not needed for a figure")
"""


@pytest.fixture
def course(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "ch01_sample.py").write_text(SCRIPT)
    return tmp_path


def test_the_registry_is_whole():
    of_part_one = [i for i in FIGURES if re.fullmatch(r"F[012]\d", i)]
    assert of_part_one == [f"F{n:02d}" for n in range(1, 29)]
    for figure in FIGURES.values():
        assert re.fullmatch(r"\d{4}\.\d{5}|10\.\d{4}/\S+", figure.paper), figure
        assert figure.chapter in figures.CHAPTERS
        assert figure.status in {"exact", "measured", "likely", "fragile"}
        assert figure.claim.endswith(".") and len(figure.claim) > 40


def test_all_figures_are_listed(capsys, tmp_path):
    assert list_figures(tmp_path) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in FIGURES)
    assert "ch08, to come" in out and "2206.00364" in out


def test_a_figure_is_made_with_its_numbers(course, tmp_path, capsys):
    out = tmp_path / "out"
    assert make_figures(["F01"], out, "full", "cpu", course) == 0
    assert (out / "F01.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((out / "F01.json").read_text())
    assert data["claims"][0]["numbers"] == {"end": 2}
    assert data["run"]["DIFFEDU_BUDGET"] == "full"
    assert data["figure"]["paper"] == "2006.11239"


def test_a_claim_that_fails_is_an_exit_code(course, tmp_path, capsys):
    assert make_figures([], tmp_path / "out", "laptop", "cpu", course) == 1
    assert "ClaimFailed: F02" in capsys.readouterr().err
    assert (tmp_path / "out" / "F01.png").is_file()


def test_a_figure_to_come_says_so(course, tmp_path, capsys):
    assert make_figures(["F14"], tmp_path / "out", "laptop", "cpu", course) == 1
    assert "F14: chapter ch05 is to come" in capsys.readouterr().err


def test_typing_mistakes_are_answered(tmp_path):
    with pytest.raises(ValueError, match='"F00" is unknown; did you mean'):
        make_figures(["F00"], tmp_path)
    with pytest.raises(ValueError, match='did you mean "full"'):
        make_figures(["F01"], tmp_path, budget="fulll")


def test_a_missing_extra_is_named(monkeypatch, course, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "jupytext", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[notebooks\]'"):
        make_figures(["F01"], tmp_path, course=course)
