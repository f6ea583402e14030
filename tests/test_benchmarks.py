"""The benchmarks run and say what they measured; no time is asserted."""

from __future__ import annotations

import json
import sys
import types

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import run as bench  # noqa: E402
import side_by_side  # noqa: E402
import trainings  # noqa: E402
import walks  # noqa: E402
from side_by_side import Row  # noqa: E402

# numpy's complaint about how diffusers makes arrays of tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

SHAPE = (2, 1, 4, 4)
ROW = Row("DDIM", "another", 120.0, 240.0, 0.5, 0.4, 0.625)


def test_ratios_are_taken_within_a_round(monkeypatch) -> None:
    """A machine that slows down tenfold changes no ratio."""
    took = iter([9, 9, 1, 2, 20, 10, 100, 200, 2000, 1000])
    monkeypatch.setattr(side_by_side, "seconds", lambda prepare: next(took))
    [row] = side_by_side.compare("walk", {"us": None, "them": None}, 1, 4)
    # the first round does not count, and they take turns in going first
    assert (row.task, row.other) == ("walk", "them")
    assert row.ratio == row.low == row.high == 2.0


def test_preparing_is_not_timed(monkeypatch) -> None:
    clock = iter([0.0, 5.0, 7.5])
    monkeypatch.setattr(side_by_side.time, "process_time", lambda: next(clock))
    done = []

    def prepare():
        next(clock)  # as long as preparing may take
        done.append("prepared")
        return lambda: done.append("run")

    assert side_by_side.seconds(prepare) == 2.5 and done == ["prepared", "run"]


def test_walks_run_in_every_library_that_is_there() -> None:
    pytest.importorskip("diffusers")
    rows = walks.walks(SHAPE, steps=3, rounds=2)
    methods = {row.task for row in rows if row.other == "diffusers"}
    assert methods == {"DDIM", "Heun", "DPM-Solver++ 2M"} == set(walks.K_DIFFUSION)
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)


def test_both_sides_walk_the_whole_way() -> None:
    pytest.importorskip("diffusers")
    for method, who in walks.contenders(SHAPE, steps=3).items():
        for name, prepare in who.items():
            assert prepare()().shape == SHAPE, (method, name)


def test_k_diffusion_is_left_out_where_it_cannot_be_imported(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.delitem(sys.modules, "k_diffusion", raising=False)
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "k_diffusion"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a heavy start')")
    (package / "sampling.py").write_text("import no_such_module_anywhere")
    assert walks.k_diffusion_sampling() is None
    (package / "sampling.py").write_text("answer = 42  # and nothing else")
    assert walks.k_diffusion_sampling().answer == 42
    monkeypatch.delitem(sys.modules, "k_diffusion")
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling")


def test_k_diffusions_walks_are_called_as_it_wants() -> None:
    seen = {}

    def sample(model, x, sigmas, disable=None):
        seen.update(x=x, sigmas=sigmas, disable=disable)
        return model(x, sigmas[0] * x.new_ones(len(x)))

    x, sigmas = walks.torch.zeros(SHAPE), walks.torch.tensor([1.0, 0.0])
    end = walks.k_diffusion_walk(sample, x, sigmas)()()
    assert end.shape == SHAPE and seen["x"] is x and seen["disable"]


def test_trainings_take_the_same_steps_on_both_sides() -> None:
    task = trainings.Task("tiny", lambda: trainings.nets.MLP(2, 8, 1), (4, 2))
    [row] = trainings.trainings((task,), steps=2, rounds=2)
    assert (row.task, row.other) == ("tiny", "by hand") and row.ours > 0
    for loop in (trainings.by_hand, trainings.by_fit):
        assert len(trainings.prepared(task, loop, 3)()()) == 3


def test_tasks_can_learn_their_batches() -> None:
    for task in trainings.TASKS:
        net, batch = task.make(), task.batches(1)[0]
        assert net(batch, walks.torch.full(batch.shape[:1], 0.5)).shape == batch.shape


def test_table_says_time_and_rate() -> None:
    both = bench.tables([ROW], [ROW])
    assert "| DDIM | another | 120 µs | 240 µs | **0.50** (0.40 to 0.62) |" in both
    assert "| DDIM | another | 8.33e+03 | 4.17e+03 |" in both


def test_block_replaces_what_stood_between_the_marks() -> None:
    text = f"a\n{bench.BEGIN}\nold\n{bench.END}\nz\n"
    want = f"a\n{bench.BEGIN}\nnew\n{bench.END}\nz\n"
    assert bench.insert(text, "new") == want == bench.insert(want, "new")


@pytest.mark.parametrize("text", ("", bench.BEGIN, f"{bench.END} {bench.BEGIN}"))
def test_readme_without_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        bench.insert(text, "new")


def test_run_prints_and_writes_when_asked(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(bench, "walks", lambda *_: [ROW])
    monkeypatch.setattr(bench, "trainings", lambda *_: [ROW])
    monkeypatch.setattr(bench, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(bench, "k_diffusion_sampling", lambda: types)
    (tmp_path / "benchmarks").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"{bench.BEGIN}\n{bench.END}\n")
    assert bench.main(["--rounds", "3"]) == 0
    assert "own cost of a step" in capsys.readouterr().out
    assert readme.read_text() == f"{bench.BEGIN}\n{bench.END}\n"
    assert bench.main(["--write"]) == 0
    assert "k-diffusion" in readme.read_text() and "120 µs" in readme.read_text()
    numbers = json.loads((tmp_path / "benchmarks" / "results.json").read_text())
    assert numbers["rows"][0]["ratio"] == 0.5 and numbers["with"]["threads"] >= 1
