"""Claims: what they print, raise and record, and the logs of recorded runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diffedu import claims
from diffedu.claims import ClaimFailed, budget, claim, report


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "claims.jsonl"
    monkeypatch.setenv("DIFFEDU_RECORD", str(path))
    return path


def test_a_claim_prints_id_statement_and_numbers(capsys):
    claim("F14", "Heun is second order", True, slope=-2.01234, control=-1)
    out = capsys.readouterr().out
    assert out == "F14 ✓ Heun is second order\n    slope = -2.012, control = -1\n"


def test_a_false_claim_raises_with_its_numbers():
    with pytest.raises(ClaimFailed, match=r"F14.*Heun is second order.*slope = -1"):
        claim("F14", "Heun is second order", False, slope=-1)


def test_a_false_claim_is_short_in_a_notebook():
    (line,) = ClaimFailed("F14: no")._render_traceback_()
    assert line == "F14: no"


def test_tensors_arrays_and_lists_are_numbers(capsys):
    claim("F01", "all", torch.tensor(True), a=torch.tensor(0.5), b=np.float32(2), c=[1])
    assert "a = 0.5, b = 2, c = [1]" in capsys.readouterr().out


def test_a_report_asserts_nothing(capsys):
    report("F18", "eta 1 is better on digits", distance=3.0)
    assert "F18 · eta 1 is better" in capsys.readouterr().out


def test_only_a_build_records(log, monkeypatch):
    claim("F01", "a", True, x=1)
    report("F02", "b")
    monkeypatch.delenv("DIFFEDU_RECORD")
    claim("F03", "c", True)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["figure"] for e in entries] == ["F01", "F02"]
    assert [e["holds"] for e in entries] == [True, None]
    assert entries[0]["numbers"] == {"x": 1}


def test_a_failed_claim_is_recorded_too(log):
    with pytest.raises(ClaimFailed):
        claim("F01", "a", False)
    assert json.loads(log.read_text())["holds"] is False


def test_an_unknown_figure_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match='figure "F1" is unknown; did you mean'):
        claim("F1", "a", True)


def test_a_chapter_without_figures_claims_under_its_own_name(capsys):
    claim("ch00", "a model was trained", True)
    assert capsys.readouterr().out.startswith("ch00 ✓")


@pytest.mark.parametrize("value", [float("nan"), torch.tensor([1.0, float("nan")])])
def test_nan_is_no_number_to_claim_on(value):
    with pytest.raises(ValueError, match="slope is NaN"):
        claim("F14", "a", True, slope=value)


def test_an_object_is_no_number():
    with pytest.raises(TypeError, match="net is a object"):
        claim("F14", "a", True, net=object())


def test_budget_follows_the_environment(monkeypatch):
    monkeypatch.delenv("DIFFEDU_BUDGET", raising=False)
    assert budget(laptop=1, full=2) == 1
    monkeypatch.setenv("DIFFEDU_BUDGET", "full")
    assert budget(laptop=1, full=2) == 2
    monkeypatch.setenv("DIFFEDU_BUDGET", "ful")
    with pytest.raises(ValueError, match='did you mean "full"'):
        budget(laptop=1, full=2)


def test_device_follows_the_environment(monkeypatch):
    monkeypatch.delenv("DIFFEDU_DEVICE", raising=False)
    assert claims.device() == torch.device("cpu")
    monkeypatch.setenv("DIFFEDU_DEVICE", "meta")
    assert claims.device() == torch.device("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(monkeypatch):
    monkeypatch.setenv("DIFFEDU_DEVICE", "cuda")
    with pytest.raises(ValueError, match="torch finds none; try cpu"):
        claims.device()


def _save(folder):
    return claims.save_recorded(
        "f06", figure="F06", recipe={"steps": 3}, seeds=[0, 1],
        results={"nll": [1.5, 1.25]}, folder=folder,
    )  # fmt: skip


def test_a_recorded_run_comes_back(tmp_path):
    _save(tmp_path)
    log = claims.recorded("f06", tmp_path)
    assert log["results"]["nll"] == [1.5, 1.25]
    assert log["seeds"] == [0, 1] and log["figure"] == "F06" and log["hardware"]


def test_a_changed_log_is_refused(tmp_path):
    path = _save(tmp_path)
    path.write_text(path.read_text().replace("1.5", "1.4"))
    with pytest.raises(ValueError, match="not the file that was recorded"):
        claims.recorded("f06", tmp_path)


def test_a_missing_log_is_named(tmp_path):
    _save(tmp_path).unlink()
    with pytest.raises(ValueError, match=r"f06\.json is missing"):
        claims.recorded("f06", tmp_path)


def test_an_unknown_log_is_answered_with_the_nearest(tmp_path):
    _save(tmp_path)
    with pytest.raises(ValueError, match='"f6" is unknown; did you mean "f06"'):
        claims.recorded("f6", tmp_path)
    with pytest.raises(ValueError, match="none is shipped"):
        claims.recorded("f06", tmp_path / "nowhere")


def test_shipped_logs_are_whole():
    for name in json.loads((claims.RECORDED / claims.SUMS).read_text()):
        assert claims.recorded(name)["results"]


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        claims.write_atomically(tmp_path / "a.json", "{}")
    assert list(tmp_path.iterdir()) == []
