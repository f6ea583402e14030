"""The browser test's own rules, without a browser: what it finds and when it skips."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

BROWSER = Path(__file__).parent / "browser"
OUTPUT, CELL = nbformat.v4.new_output, nbformat.v4.new_code_cell


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(BROWSER))
    for name in ("run", "server"):
        sys.modules.pop(name, None)
    import run

    yield run
    for name in ("run", "server"):
        sys.modules.pop(name, None)


def figure(alt="a line that falls from one to zero"):
    meta = {"image/png": {"alt": alt}} if alt else {}
    return OUTPUT("display_data", data={"image/png": "AAAA"}, metadata=meta)


def error():
    return OUTPUT("error", ename="ValueError", evalue="no", traceback=[])


def found(run, shown, saved, wanted):
    return list(run.complaints([shown], [saved], [wanted]))


def test_a_cell_as_it_should_be_has_nothing_to_complain_of(run):
    cell = CELL(outputs=[figure()])
    assert found(run, {"prompt": "[3]:", "figures": [600]}, cell, cell) == []


WRONG = [
    ({"prompt": "[*]:", "figures": [600]}, [figure()], "did not run"),
    ({"prompt": "[ ]:", "figures": [600]}, [figure()], "did not run"),
    ({"prompt": "[3]:", "figures": []}, [figure()], "shows 0 figures, 1 are wanted"),
    ({"prompt": "[3]:", "figures": [0]}, [figure()], "a figure of no size"),
    ({"prompt": "[3]:", "figures": [600]}, [figure(alt="")], "without alt text"),
    ({"prompt": "[3]:", "figures": [600]}, [error()], "ValueError: no"),
]


@pytest.mark.parametrize(("shown", "outputs", "words"), WRONG)
def test_what_a_reader_would_stumble_over_is_found(run, shown, outputs, words):
    wanted = CELL(outputs=[figure()])
    [complaint] = found(run, shown, CELL(outputs=outputs), wanted)
    assert words in complaint


def test_missing_cells_and_errors_on_purpose(run):
    purpose = {"tags": ["raises-exception"]}
    shown = {"prompt": "[1]:", "figures": []}
    raising = CELL(outputs=[error()], metadata=purpose)
    assert found(run, shown, raising, raising) == []
    silent = CELL(metadata=purpose)
    assert "should raise" in found(run, shown, silent, silent)[0]
    assert list(run.complaints([], [], [silent])) == [
        "the page has 0 code cells, the notebook 1"
    ]


class Request:
    def __init__(self, url):
        self.url = url


URLS = [
    ("http://127.0.0.1:8888/lab", False),
    ("ws://localhost:8888/api", False),
    ("data:image/png;base64,AAAA", False),
    ("https://example.org/font.woff", True),
    ("wss://example.org/socket", True),
]


@pytest.mark.parametrize(("url", "outside"), URLS)
def test_requests_to_other_machines_are_noted(run, url, outside):
    heard = run.Heard()
    heard._asked(Request(url))
    assert heard.outside == [url] * outside


def test_without_a_browser_it_is_skipped_with_a_hint(run, monkeypatch, capsys):
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    monkeypatch.setitem(sys.modules, "playwright", sys)
    assert run.main([]) == run.SKIPPED == 77
    assert "no Chromium was found" in capsys.readouterr().out


def test_without_playwright_it_is_skipped_with_a_hint(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "playwright", None)
    assert run.main([]) == run.SKIPPED
    assert "--extras" in capsys.readouterr().out


def test_the_named_chapter_is_taken_or_the_first(run, tmp_path):
    with pytest.raises(run.Wrong, match="no executed notebook"):
        run.chapter("ch01", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("ch00_a.ipynb", "ch01_b.ipynb"):
        (tmp_path / "notebooks" / name).touch()
    assert run.chapter("ch01", tmp_path) == "notebooks/ch01_b.ipynb"
    assert run.chapter("ch02", tmp_path) == "notebooks/ch00_a.ipynb"


def test_a_server_that_ends_at_once_is_told_with_its_log(run, tmp_path):
    import server

    class Ended:
        def poll(self):
            return 1

    log = tmp_path / "lab.log"
    log.write_text("no such option")
    with pytest.raises(server.Wrong, match="no such option"):
        server.wait_for("http://127.0.0.1:1/", Ended(), log)
