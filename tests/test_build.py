"""The build: what it makes, what it runs again, and what it finds out of step."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket

import build
import chapters
import execute
import imports
import numpy as np
import pytest
import receipts
import sample_course
import strip
from chapters import ChapterError
from PIL import Image
from sample_course import STEM, Course

nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    course = sample_course.make(tmp_path_factory.mktemp("built"))
    assert build.main([], course) == 0
    return course


@pytest.fixture
def course(built, tmp_path):
    """A copy of the built course, to be spoilt."""
    shutil.copytree(built.root, tmp_path / "course")
    return Course(tmp_path / "course", tmp_path / "course" / "library")


@pytest.fixture
def no_run(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this must not execute anything")

    monkeypatch.setattr(build, "execute", refuse)


def edit(course, kind, old, new):
    path = course.root / kind / f"{STEM}.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def notebook(course, kind="notebooks"):
    return nbformat.read(course.root / kind / f"{STEM}.ipynb", as_version=4)


def test_the_pair_is_executed_and_valid(built):
    nb = notebook(built)
    nbformat.validate(nb)
    assert nb.metadata.kernelspec.name == "python3"
    counts = [c.execution_count for c in nb.cells if c.cell_type == "code"]
    assert counts == [1, 2, 3]
    assert not any("execution" in cell.metadata for cell in nb.cells)


def test_the_picture_is_small_and_has_its_alt_text(built):
    (figure,) = [
        out
        for cell in notebook(built).cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    png = base64.b64decode(figure.data["image/png"])
    assert Image.open(io.BytesIO(png)).mode == "P" and len(png) < 60_000
    assert figure.metadata["image/png"]["alt"].startswith("A histogram")


def test_the_receipt_holds_time_memory_and_claims(built):
    receipt = json.loads(built.receipt(STEM).read_text())
    assert receipt["minutes"] > 0 and receipt["peak_memory_mb"] > 50
    assert receipt["speed"] > 0
    (claim,) = receipt["claims"]
    assert claim["figure"] == "F01" and claim["holds"] is True
    assert "diffedu/claims.py" in receipt["notebooks"]["files"]
    assert "diffedu/checks/machinery.py" in receipt["solutions"]["files"]
    assert "diffedu/checks/machinery.py" not in receipt["notebooks"]["files"]


def test_header_and_readme_say_what_the_receipt_says(built):
    words = receipts.words(receipts.load(built, STEM))
    assert "on one CPU thread" in words
    assert f"| receipt | {words} |" in notebook(built).cells[0].source
    script = (built.root / "notebooks" / f"{STEM}.py").read_text()
    assert f"# | receipt | {words} |" in script
    readme = (built.root / "README.md").read_text()
    assert f"[1. A sample](notebooks/{STEM}.ipynb) | 1 hour | nothing |" in readme
    assert readme.endswith("\n\nThe end.\n")


def test_all_is_in_step_after_a_build(built, no_run):
    assert build.problems(built) == []
    assert build.changed_notebooks(built) == []


def test_a_second_build_changes_no_byte(course, no_run):
    before = sample_course.files(course)
    assert build.main([], course) == 0
    assert sample_course.files(course) == before


@pytest.mark.slow
def test_a_forced_build_runs_and_changes_no_byte(course):
    before = sample_course.files(course)
    assert build.main(["--force"], course) == 0
    assert sample_course.files(course) == before


def test_touching_files_changes_nothing(course, no_run):
    for path in course.root.rglob("*"):
        path.touch()
    assert build.problems(course) == []


def test_text_is_taken_over_without_a_run(course, no_run):
    edit(course, "notebooks", "Noise keeps", "Normal noise keeps")
    assert build.problems(course) == [
        f"notebooks/{STEM}: the notebook's text differs from the script's"
    ]
    assert build.main([], course) == 0
    nb = notebook(course)
    assert "Normal noise keeps" in nb.cells[2].source and nb.cells[3].outputs
    assert build.problems(course) == []


def test_edited_code_has_to_run(course, no_run):
    edit(course, "notebooks", "torch.randn(1000", "torch.randn(2000")
    assert [p.name for p in build.changed_notebooks(course)] == [f"{STEM}.ipynb"]
    assert "its code changed" in build.problems(course)[0]


@pytest.mark.parametrize(
    ("old", "new", "runs"),
    [
        ("len(pairs)", "len(list(pairs))", 0),
        ('"""Write a text file beside', '"""Put a text file beside', 0),
        ('mark = {"claim": "✓"', 'mark = {"claim": "+"', 1),
        ("import hashlib\n", "# why\n\nimport hashlib\n", 0),
    ],
)
def test_only_library_code_that_is_used_counts(course, old, new, runs):
    name = "checks/diagnosis.py" if "pairs" in old else "claims.py"
    path = course.library / "diffedu" / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    changed = build.changed_notebooks(course)
    assert len([p for p in changed if p.parent.name == "notebooks"]) == runs


def test_a_data_file_that_is_named_counts(course):
    nb = chapters.read(course.root / "notebooks" / f"{STEM}.py")
    data = course.library / "diffedu" / "unet_tiny.safetensors"
    data.write_bytes(b"1")
    assert receipts.data_files(["style"], course) == []
    (course.library / "diffedu" / "sha256.json").write_bytes(b"{}")  # of recordings
    assert receipts.data_files(["read(sha256.json)"], course) == []
    assert receipts.data_files(['load("unet_tiny")'], course) == [data]
    nb.cells[1].source += '\nload("unet_tiny")'
    before = receipts.fingerprint(nb, [], course)
    data.write_bytes(b"2")
    assert receipts.fingerprint(nb, [], course) != before


@pytest.mark.slow
def test_a_failing_cell_is_named_and_leaves_the_old_pair(course, capsys):
    edit(course, "notebooks", "print(x.shape)", "print(x.shappe)")
    before = sample_course.files(course)
    assert build.main(["ch01"], course) == 1
    said = capsys.readouterr().err
    assert f"notebooks/{STEM}.py, cell 4" in said and "AttributeError" in said
    assert sample_course.files(course) == before


@pytest.mark.slow
def test_a_claim_that_fails_stops_the_build(course, capsys):
    edit(course, "notebooks", "< 0.2", "> 0.2")
    assert build.main(["ch01"], course) == 1
    assert "ClaimFailed: F01: this does not hold" in capsys.readouterr().err


def _spoil_pair(course):
    path = course.root / "notebooks" / f"{STEM}.ipynb"
    path.write_text("{")


def _spoil_exercise(course):
    path = course.exercise(STEM)
    path.write_text(path.read_text().replace("NotImplementedError()", "Exception()"))


def _spoil_readme(course):
    path = course.root / "README.md"
    path.write_text(path.read_text().replace("1 hour", "2 hours"))


def _unmark_readme(course):
    (course.root / "README.md").write_text("no table")


def _spoil_receipt(course):
    course.receipt(STEM).write_text("{")


def _orphan(course):
    shutil.copy(course.exercise(STEM), course.root / "notebooks" / "ch07_old.ipynb")


def _row(course):
    edit(course, "notebooks", "on one CPU thread", "on one thread")


SPOILT = [
    (_spoil_pair, "it has no notebook yet"),
    (_spoil_exercise, "the exercise is not what its solution makes"),
    (_spoil_readme, "the table of chapters is not the receipts'"),
    (_unmark_readme, "README.md lacks <!-- chapters:begin -->"),
    (_spoil_receipt, "is not JSON"),
    (_orphan, "notebooks/ch07_old.ipynb has no script"),
    (_row, "text differs"),
    (lambda c: c.receipt(STEM).unlink(), "it has no receipt yet"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_what_is_out_of_step_is_found(course, no_run, capsys, spoil, words):
    spoil(course)
    assert build.main(["--check"], course) == 1
    assert words in capsys.readouterr().err


def test_a_chapter_that_is_not_here_is_named(course, capsys):
    assert build.main(["ch99"], course) == 1
    assert f"chapter 'ch99' is not here; there are: {STEM}" in capsys.readouterr().err


TAGS = [
    ('["check:twice"]', "check:twice needs points:N"),
    ('["points:2"]', "points without check, answer or task"),
    ('["solution:a b"]', "bad name 'a b'"),
    ('["answer:why", "points:2"]', "answer is markdown"),
]


@pytest.mark.parametrize(("tags", "words"), TAGS)
def test_wrong_tags_are_named(tmp_path, tags, words):
    path = tmp_path / "ch01_bad.py"
    path.write_text(f"# %% tags={tags}\nx = 1\n")
    with pytest.raises(ChapterError, match=words):
        chapters.read(path)


def test_a_header_without_a_row_is_named(tmp_path):
    path = tmp_path / "ch01_bad.py"
    path.write_text("# %% [markdown]\n# # 1. Title\n# | needs | ch00 |\n")
    with pytest.raises(ChapterError, match="lacks surveys, study, receipt"):
        chapters.header(chapters.read(path))
    path.write_text("# %% [markdown]\n# # Title\n")
    with pytest.raises(ChapterError, match="no title"):
        chapters.header(chapters.read(path))


def test_ids_stay_when_other_cells_move(tmp_path):
    path = tmp_path / "ch01_a.py"
    path.write_text("# %%\na = 1\n\n# %%\nb = 1\n\n# %%\nb = 1\n")
    before = [c.id for c in chapters.read(path).cells]
    path.write_text("# %%\nnew = 1\n\n# %%\na = 1\n\n# %%\nb = 1\n\n# %%\nb = 1\n")
    after = [c.id for c in chapters.read(path).cells]
    assert after[1:] == before and len(set(after)) == 4


def test_blocks_are_cut_at_their_indent():
    text = "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
    stub = "def f():\n    # YOUR CODE HERE\n    raise NotImplementedError()"
    assert strip.cut(text, strip.SOLUTION, strip.CODE_STUB) == stub


@pytest.mark.parametrize(
    "text",
    [
        "### BEGIN SOLUTION\nx",
        "x\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_broken_blocks_are_refused(text):
    with pytest.raises(ChapterError, match="SOLUTION"):
        strip.cut(text, strip.SOLUTION)


def test_nothing_of_a_solution_is_released(built):
    solution = notebook(built, "solutions")
    exercise = notebook(built, "exercises")
    assert strip.solution_lines(solution) == {
        "doubled = x + x",
        "return doubled",
        "Because addition is repeated once.",
    }
    assert exercise.cells[4].source.endswith("raise NotImplementedError()")
    assert exercise.cells[-1].source == "YOUR ANSWER HERE"
    assert not any(cell.get("outputs") for cell in exercise.cells)


def test_hidden_tests_and_mark_schemes_are_cut():
    cell = nbformat.v4.new_code_cell(
        "a\n### BEGIN HIDDEN TESTS\nb\n### END HIDDEN TESTS"
    )
    text = nbformat.v4.new_markdown_cell(
        "do\n=== BEGIN MARK SCHEME ===\nb\n=== END MARK SCHEME ==="
    )
    nb = strip.release(nbformat.v4.new_notebook(cells=[cell, text]))
    assert [c.source for c in nb.cells] == ["a", "do"]


def _noise_png(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def test_pictures_lose_colours_until_they_fit():
    gray = Image.new("L", (64, 64), 128)
    target = io.BytesIO()
    gray.save(target, "PNG")
    assert len(execute.shrink(target.getvalue())) < 300
    few = Image.open(io.BytesIO(execute.shrink(_noise_png(256)))).getcolors()
    assert len(few) <= 128


def test_a_picture_too_large_is_named(tmp_path):
    data = {"image/png": base64.b64encode(_noise_png(600)).decode()}
    cell = nbformat.v4.new_code_cell("draw()")
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    nb = nbformat.v4.new_notebook(cells=[cell])
    with pytest.raises(execute.ChapterFailed, match="cell 0: its picture takes"):
        execute._tidy(nb, tmp_path / "notebooks" / "ch01_a.py")


def test_an_error_on_purpose_keeps_no_folder_of_this_machine(tmp_path):
    frames = ["File /home/somebody/x.py:3", "ValueError: give a number"]
    output = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="give a number", traceback=frames
    )
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    execute._tidy(nb, tmp_path / "notebooks" / "ch01_sample.py")
    assert nb.cells[0].outputs[0].traceback == ["ValueError: give a number"]


def test_widgets_are_taken_out_and_the_rest_stays():
    bar = {execute.WIDGET: {"model_id": "f19c"}, "text/plain": "0%"}
    shown = [bar, {"text/plain": "3"}]
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    cell = nbformat.v4.new_code_cell(outputs=outputs)
    nb = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    execute.drop_widgets(nb)
    assert [o.data for o in nb.cells[0].outputs] == [{"text/plain": "3"}]
    assert "widgets" not in nb.metadata


def test_imports_are_followed_past_the_packages_init(tmp_path):
    files = {
        "__init__": "from . import far",
        "far": "",
        "near": "from .rooms.inner import f",
        "rooms/__init__": "from . import other",
        "rooms/inner": "import diffedu.lazy",
        "rooms/other": "from ..last import g",
        "lazy": "",
        "last": "",
    }
    for name, text in files.items():
        path = tmp_path / "diffedu" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = imports.needed(["from diffedu import near", "%%nonsense"], tmp_path)
    assert found == {f"diffedu/{name}.py" for name in files if name != "far"}


def test_code_is_compared_without_docstrings_and_comments():
    doc = '"""Doc\n    more."""'
    source = f'{doc}\n# why\n\ndef f():\n    {doc}\n    return "# x"  # y\n'
    assert receipts.code_only(source) == 'def f():\n    return "# x"  # y'


KERNEL_TEST = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), timeout=5).close()
print("loopback works")
socket.create_connection(("192.0.2.1", 80), timeout=1)
"""


def test_a_kernel_reaches_loopback_and_nothing_else(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(KERNEL_TEST)])
    script = tmp_path / "ch01_net.py"
    with pytest.raises(execute.ChapterFailed) as failure:
        execute.execute(nb, script, Course(tmp_path, sample_course.ROOT))
    assert nb.cells[0].outputs[0].text == "loopback works\n"
    words = "NetworkClosed: this runs without a network, but something asked for"
    assert f"{words} 192.0.2.1" in str(failure.value)


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.syspath_prepend(str(sample_course.ROOT / "tests" / "no_network"))
    import closed_network

    return closed_network


@pytest.mark.parametrize(
    ("event", "args"),
    [
        ("socket.connect", (None, ("example.org", 80))),
        ("socket.sendto", (None, ("8.8.8.8", 53))),
        ("socket.getaddrinfo", ("example.org", 80, 0, 0, 0)),
        ("socket.getaddrinfo", (b"example.org", 80, 0, 0, 0)),
        ("socket.connect", (None, ("2001:db8::1", 80, 0, 0))),
    ],
)
def test_every_way_out_is_closed(watch, event, args):
    with pytest.raises(watch.NetworkClosed, match="nothing in the course may need"):
        watch._watch(event, args)


@pytest.mark.parametrize(
    ("event", "args"),
    [
        ("socket.connect", (None, ("127.0.0.1", 80))),
        ("socket.connect", (None, ("::1", 80, 0, 0))),
        ("socket.connect", (None, "/tmp/file")),
        ("socket.getaddrinfo", ("localhost", 80, 0, 0, 0)),
        ("socket.getaddrinfo", (None, 80, 0, 0, 0)),
        ("socket.bind", (None, ("0.0.0.0", 0))),
        ("open", ("example.org", "r", 0)),
    ],
)
def test_loopback_and_files_stay_open(watch, event, args):
    assert watch._watch(event, args) is None


def test_this_process_is_closed_too():
    with pytest.raises(RuntimeError, match="without a network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
