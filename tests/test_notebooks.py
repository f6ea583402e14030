"""Every chapter as it is committed: structure, outputs, pictures, figures, words."""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import pytest
import sample_course
from chapters import FIGURE, OTHER_TAGS, ROLES, ChapterError, Course, content, header
from chapters import read as read_script
from pairs import load_pair

from diffedu.figures import CHAPTERS as CHAPTER_IDS
from diffedu.figures import FIGURES

COURSE = Course()
SCRIPTS = COURSE.scripts()
CHAPTERS = [s for s in SCRIPTS if s.parent.name == "notebooks"]
PNG_BYTES, PNG_COUNT, SETUP_LINES = 60_000, 10, 6
BANNED = re.compile(r"\b(simply|easy|easily|obviously|trivial|trivially)\b", re.I)


def name(script: Path) -> str:
    return f"{script.stem}-{script.parent.name}"


def code_cells(nb: Any) -> list[Any]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def outputs(nb: Any) -> Iterator[tuple[Any, Any]]:
    for cell in code_cells(nb):
        for output in cell.outputs:
            yield cell, output


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def pair_complaints(script: Path) -> Iterator[str]:
    nb, pair = read_script(script), load_pair(script)
    if pair is None:
        yield "it has no notebook: run python tools/build.py"
        return
    if content(nb) != content(pair):
        yield "the notebook is stale: run python tools/build.py"
    if pair.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the notebook has no kernelspec: JupyterLab would ask for a kernel"


def setup_complaints(nb: Any) -> Iterator[str]:
    lines = [x for x in code_cells(nb)[0].source.split("\n") if x.strip()]
    if len(lines) > SETUP_LINES:
        yield f"the set-up cell has {len(lines)} lines, {SETUP_LINES} are allowed"
    if not any("import" in line for line in lines):
        yield "the first code cell is not a set-up cell: it imports nothing"


def source_complaints(nb: Any) -> Iterator[str]:
    for number, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            yield from _words(number, cell.source)
            continue
        if "set_num_threads" in cell.source:
            yield f"cell {number} sets the number of threads"
        if re.search(r"^\s*[%!]", cell.source, re.M):
            yield f"cell {number} has a magic or shell command"
        if re.search(r";\s*$", cell.source, re.M):
            yield f"cell {number} has a trailing ;"
        if error := _syntax(cell.source):
            yield f"cell {number} is no Python: {error}"
        for tag in tags(cell):
            kind, colon, rest = tag.partition(":")
            known = FIGURE.fullmatch(tag) or tag in OTHER_TAGS
            if not known and not (colon and kind in (*ROLES, "points") and rest):
                yield f"cell {number} has the unknown tag {tag!r}"


def _words(number: int, text: str) -> Iterator[str]:
    for word in BANNED.findall(text):
        yield f"cell {number} says {word!r}"
    for url in re.findall(r"https?://arxiv\.org/\S+", text):
        yield f"cell {number} cites {url}; write the arXiv id alone"


def _syntax(source: str) -> str:
    try:
        ast.parse(source)
    except SyntaxError as error:
        return str(error)
    return ""


def output_complaints(nb: Any) -> Iterator[str]:
    if any(cell.execution_count is None for cell in code_cells(nb)):
        yield "it was not executed"
    for cell, output in outputs(nb):
        first = cell.source.strip().split("\n")[0]
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"`{first}` ends in {output.ename}"
        if output.get("name") == "stderr":
            yield f"`{first}` writes to stderr: {output.text[:60]!r}"
        if re.search(r"0x[0-9a-f]{6,}|/home/|/tmp/", str(output.get("text", ""))):
            yield f"`{first}` prints an address or a path, which differ from run to run"


def picture_complaints(nb: Any) -> Iterator[str]:
    pictures = [(c, o) for c, o in outputs(nb) if "image/png" in o.get("data", {})]
    if len(pictures) > PNG_COUNT:
        yield f"it has {len(pictures)} pictures, {PNG_COUNT} are allowed"
    for cell, output in pictures:
        first = cell.source.strip().split("\n")[0]
        size = len(base64.b64decode(output.data["image/png"]))
        if size > PNG_BYTES:
            yield f"the picture of `{first}` takes {size} bytes"
        alt = output.metadata.get("image/png", {}).get("alt", "")
        if len(alt.split()) < 5:
            yield f"the picture of `{first}` has no alt text; draw it with style.show"


def figure_complaints(nb: Any, figures: dict[str, Any], chapter: str) -> Iterator[str]:
    """Each figure of the chapter is drawn in a cell that ends in its claim."""
    for figure in (f for f in figures.values() if f.chapter == chapter):
        cells = [cell for cell in code_cells(nb) if figure.id in tags(cell)]
        if not cells:
            yield f"no cell has the tag {figure.id}, which this chapter owns"
        elif not any(
            "image/png" in o.get("data", {}) for c in cells for o in c.outputs
        ):
            yield f"no cell with the tag {figure.id} draws anything"
        elif not _ends_in_claim(cells[-1].source, figure.id):
            yield f"the last cell tagged {figure.id} doesn't end in claim or report"
    told = set(header(nb).figures)
    owned = {f.id for f in figures.values() if f.chapter == chapter}
    if told != owned:
        yield f"the header lists {sorted(told)}, the registry {sorted(owned)}"


def _draws(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def _ends_in_claim(source: str, figure: str) -> bool:
    last = ast.parse(source).body[-1]
    call = last.value if isinstance(last, ast.Expr) else None
    if not isinstance(call, ast.Call) or not call.args:
        return False
    function = ast.unparse(call.func).split(".")[-1]
    first = call.args[0]
    same = isinstance(first, ast.Constant) and first.value == figure
    return function in ("claim", "report") and same


def header_complaints(nb: Any, course: Course, stem: str) -> Iterator[str]:
    try:
        head = header(nb)
    except ChapterError as error:
        yield str(error)
        return
    chapter = stem.split("_")[0]
    if f"ch{head.number.zfill(2 + (not head.number.isdigit()))}" != chapter:
        yield f"the title says chapter {head.number}"
    needs = [] if head.needs == "nothing" else re.split(r",\s*", head.needs)
    if bad := [n for n in needs if n not in CHAPTER_IDS or n >= chapter]:
        yield f"it needs {', '.join(bad)}; write nothing, or earlier chapters, as ch01"
    if not re.fullmatch(r"\d+(\.\d)? (hours?|minutes)", head.study):
        yield f"study is {head.study!r}; write as 2.5 hours or 40 minutes"


def citation_complaints(nb: Any) -> Iterator[str]:
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    if not re.search(r"\b\d{4}\.\d{5}\b", text):
        yield "it cites no paper by arXiv id"


def refuse(complaints: Iterator[str]) -> None:
    assert list(complaints) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_the_pair_is_in_step(script):
    refuse(pair_complaints(script))


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_source_and_outputs_are_in_order(script):
    nb = load_pair(script)
    refuse(setup_complaints(nb))
    refuse(source_complaints(nb))
    refuse(output_complaints(nb))


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_pictures_are_small_and_described(script):
    refuse(picture_complaints(load_pair(script)))


@pytest.mark.parametrize("script", CHAPTERS, ids=name)
def test_the_header_is_whole(script):
    nb = load_pair(script)
    refuse(header_complaints(nb, COURSE, script.stem))
    refuse(figure_complaints(nb, FIGURES, script.stem.split("_")[0]))
    if script.stem[:4] != "ch00":
        refuse(citation_complaints(nb))


@pytest.mark.parametrize("script", CHAPTERS, ids=name)
def test_every_claim_of_the_receipt_held(script):
    import receipts

    receipt = receipts.load(COURSE, script.stem)
    assert all(claim["holds"] is not False for claim in receipt["claims"])
    owned = {f.id for f in FIGURES.values() if f.chapter == script.stem.split("_")[0]}
    assert owned <= {claim["figure"] for claim in receipt["claims"]}


@pytest.mark.parametrize("script", CHAPTERS, ids=name)
def test_every_chapter_has_its_exercises(script):
    if script.stem[:4] != "ch00":
        assert COURSE.exercise(script.stem).is_file()


# The rules themselves: each finds what it is there for.


@pytest.fixture
def nb(tmp_path):
    course = sample_course.make(tmp_path)
    notebook = read_script(course.root / "notebooks" / f"{sample_course.STEM}.py")
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
    return notebook


def picture(alt="a picture of a falling line", data="AAAA"):
    meta = {"image/png": {"alt": alt}} if alt else {}
    return _output("display_data", data={"image/png": data}, metadata=meta)


def _output(kind, **fields):
    import nbformat

    return nbformat.v4.new_output(kind, **fields)


def test_the_sample_has_nothing_to_complain_of(nb):
    code_cells(nb)[1].outputs = [picture()]
    refuse(setup_complaints(nb))
    refuse(source_complaints(nb))
    refuse(output_complaints(nb))
    refuse(picture_complaints(nb))
    refuse(header_complaints(nb, COURSE, "ch01_sample"))
    refuse(citation_complaints(nb))
    owned = {"F01": FIGURES["F01"]}
    refuse(figure_complaints(nb, owned, "ch01"))


SOURCES = [
    ("torch.set_num_threads(2)", "sets the number of threads"),
    ("%matplotlib inline", "magic or shell"),
    ("!ls", "magic or shell"),
    ("plt.plot(x);", "trailing ;"),
    ("x = = 1", "is no Python"),
]


@pytest.mark.parametrize(("source", "words"), SOURCES)
def test_bad_code_is_found(nb, source, words):
    code_cells(nb)[1].source = source
    assert any(words in complaint for complaint in source_complaints(nb))


@pytest.mark.parametrize("tag", ["F1", "hide", "check:", "nbval-skip"])
def test_unknown_tags_are_found(nb, tag):
    code_cells(nb)[1].metadata["tags"] = [tag]
    assert list(source_complaints(nb)) == [f"cell 3 has the unknown tag {tag!r}"]


def test_bad_words_are_found(nb):
    nb.cells[2].source = "It is simply https://arxiv.org/abs/2006.11239."
    assert len(list(source_complaints(nb))) == 2
    nb.cells[2].source = "No paper."
    assert list(citation_complaints(nb)) == ["it cites no paper by arXiv id"]


def test_a_long_setup_is_found(nb):
    code_cells(nb)[0].source = "\n\n".join(["import torch"] * 7)
    assert "7 lines" in next(setup_complaints(nb))
    code_cells(nb)[0].source = "x = 1"
    assert "imports nothing" in next(setup_complaints(nb))


OUTPUTS = [
    ({"kind": "error", "ename": "ValueError", "evalue": "", "traceback": []}, "ends"),
    ({"kind": "stream", "name": "stderr", "text": "Warning: x"}, "writes to stderr"),
    ({"kind": "stream", "name": "stdout", "text": "<f at 0x7f0b6138>"}, "an address"),
]


@pytest.mark.parametrize(("fields", "words"), OUTPUTS)
def test_bad_outputs_are_found(nb, fields, words):
    kind = fields["kind"]
    rest = {k: v for k, v in fields.items() if k != "kind"}
    code_cells(nb)[1].outputs = [_output(kind, **rest)]
    assert words in next(output_complaints(nb))


def test_an_error_on_purpose_is_allowed(nb):
    cell = code_cells(nb)[1]
    cell.metadata["tags"] = ["raises-exception"]
    cell.outputs = [_output("error", ename="E", evalue="", traceback=[])]
    refuse(output_complaints(nb))


def test_cells_that_did_not_run_are_found(nb):
    code_cells(nb)[1].execution_count = None
    assert list(output_complaints(nb)) == ["it was not executed"]


def test_bad_pictures_are_found(nb):
    cell = code_cells(nb)[1]
    cell.outputs = [picture(alt=""), picture(data="A" * 90_000)]
    first, second = picture_complaints(nb)
    assert "no alt text" in first and "takes 67500 bytes" in second
    cell.outputs = [picture() for _ in range(11)]
    assert list(picture_complaints(nb)) == ["it has 11 pictures, 10 are allowed"]


def test_figures_without_tag_picture_or_claim_are_found(nb):
    owned = {"F01": FIGURES["F01"]}
    cell = code_cells(nb)[1]
    assert "draws anything" in next(figure_complaints(nb, owned, "ch01"))
    cell.outputs = [picture()]
    cell.source += "\nprint(1)"
    assert "end in claim" in next(figure_complaints(nb, owned, "ch01"))
    cell.metadata["tags"] = []
    assert "no cell has the tag F01" in next(figure_complaints(nb, owned, "ch01"))


def test_figures_the_header_forgets_are_found(nb):
    cell = code_cells(nb)[1]
    cell.outputs = [picture()]
    *_, last = figure_complaints(nb, FIGURES, "ch01")
    assert last == "the header lists ['F01'], the registry ['F01', 'F02']"


HEADERS = [
    ("# 1. A sample", "# 2. A sample", "the title says chapter 2"),
    ("| needs | nothing |", "| needs | chapter 0 |", "it needs chapter 0"),
    ("| needs | nothing |", "| needs | ch01 |", "it needs ch01"),
    ("1 hour", "a while", "study is 'a while'"),
    ("| study | 1 hour |", "", "lacks study"),
]


@pytest.mark.parametrize(("old", "new", "words"), HEADERS)
def test_bad_headers_are_found(nb, old, new, words):
    nb.cells[0].source = nb.cells[0].source.replace(old, new)
    assert words in next(header_complaints(nb, COURSE, "ch01_sample"))


def test_a_stale_pair_is_found(tmp_path):
    course = sample_course.make(tmp_path)
    script = course.root / "notebooks" / f"{sample_course.STEM}.py"
    assert "has no notebook" in next(pair_complaints(script))
    nb = read_script(script)
    jupytext.write(nb, script.with_suffix(".ipynb"))
    refuse(pair_complaints(script))
    script.write_text(script.read_text().replace("Noise", "noise"))
    assert "stale" in next(pair_complaints(script))
