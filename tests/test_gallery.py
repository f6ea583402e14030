"""The gallery: made from receipts and notebooks, and in step with them."""

from __future__ import annotations

import base64
import io
import json
import re

import build
import gallery
import pytest
import receipts
import sample_course
from chapters import ChapterError, Course
from PIL import Image

nbformat = pytest.importorskip("nbformat")

from pairs import notebook_text  # noqa: E402

CLAIM = {
    "figure": "F01",
    "statement": "the variance is one",
    "holds": True,
    "numbers": {"variance": 1.03456, "control": [0.5, 2], "many": list(range(40))},
}
REPORT = {"figure": "F01", "statement": "as seen", "holds": None, "numbers": {}}
OTHER = {"figure": "ch01", "statement": "of no figure", "holds": True, "numbers": {}}


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(file, "PNG")
    return file.getvalue()


def picture(colour: str, alt: str):
    return nbformat.v4.new_output(
        "display_data",
        data={"image/png": base64.b64encode(png(colour)).decode()},
        metadata={"image/png": {"alt": alt}},
    )


@pytest.fixture
def course(tmp_path):
    """The sample course as if it had been run: two pictures, two claims."""
    course = sample_course.make(tmp_path)
    script = course.root / "notebooks" / f"{sample_course.STEM}.py"
    nb = gallery.read(script)
    (cell,) = [c for c in nb.cells if "F01" in c.metadata.get("tags", [])]
    cell.outputs = [picture("red", "A red [0, 1] square."), picture("blue", "Blue.")]
    script.with_suffix(".ipynb").write_text(notebook_text(nb))
    tell(course, [CLAIM, REPORT, OTHER])
    return course


def tell(course: Course, claims: list[dict]) -> None:
    path = course.receipt(sample_course.STEM)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(receipts.dump({"claims": claims}))


def text(course: Course) -> str:
    return (course.root / gallery.PAGE).read_text(encoding="utf-8")


def test_the_page_shows_picture_claim_numbers_and_chapter(course):
    assert gallery.main([], course) == 0
    page = text(course)
    assert "1 figures; 1 statements hold, 1 are reported." in page
    assert "[Open the chapter](../notebooks/ch01_sample.ipynb)" in page
    assert r"![A red \[0, 1\] square.](gallery/F01.png)" in page
    assert "![Blue.](gallery/F01-2.png)" in page
    assert gallery.FIGURES["F01"].claim in page
    assert "- **holds**: the variance is one" in page
    assert (
        "`control = [0.5, 2]; many = [0, 1, " in page and "; variance = 1.03`" in page
    )
    assert "- *reported*: as seen" in page and "of no figure" not in page
    folder = course.root / gallery.FOLDER
    assert (folder / "F01.png").read_bytes() == png("red")
    assert (folder / "F01-2.png").read_bytes() == png("blue")


def test_long_lists_are_cut_and_numbers_rounded():
    assert gallery.word([0.123456, [1, 2.0]]) == "[0.123, [1, 2]]"
    assert gallery.word(list(range(40))).endswith("10, 11, …]")
    assert gallery.word("below 1e-9") == "below 1e-9"


def test_a_second_run_changes_nothing(course, capsys):
    gallery.main([], course)
    files = sample_course.files(course)
    assert capsys.readouterr().out.count("wrote") == 3
    assert gallery.main([], course) == 0
    assert capsys.readouterr().out == ""
    assert sample_course.files(course) == files
    assert gallery.main(["--check"], course) == 0


def spoil_numbers(course):
    tell(course, [CLAIM | {"numbers": {"variance": 2.0}}])


def spoil_page(course):
    path = course.root / gallery.PAGE
    path.write_text(path.read_text() + "by hand\n")


def spoil_picture(course):
    (course.root / gallery.FOLDER / "F01.png").write_bytes(png("green"))


def lose_picture(course):
    (course.root / gallery.FOLDER / "F01-2.png").unlink()


def leave_picture(course):
    (course.root / gallery.FOLDER / "F02.png").write_bytes(png("green"))


SPOILT = {
    spoil_numbers: "docs/gallery.md is not",
    spoil_page: "docs/gallery.md is not",
    spoil_picture: "docs/gallery/F01.png is not",
    lose_picture: "docs/gallery/F01-2.png is not",
    leave_picture: "docs/gallery/F02.png belongs to no figure",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_check_says_what_is_out_of_step_and_writing_mends_it(course, capsys, spoil):
    gallery.main([], course)
    spoil(course)
    before = sample_course.files(course)
    assert gallery.main(["--check"], course) == 1
    assert SPOILT[spoil] in capsys.readouterr().err
    assert sample_course.files(course) == before, "a check writes nothing"
    assert gallery.main([], course) == 0
    assert gallery.main(["--check"], course) == 0


def test_other_line_ends_are_in_step(course):
    gallery.main([], course)
    path = course.root / gallery.PAGE
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert gallery.main(["--check"], course) == 0


def test_a_figure_without_a_claim_is_an_error(course, capsys):
    tell(course, [OTHER])
    with pytest.raises(ChapterError, match="F01 has no claim"):
        gallery.chapters(course)
    assert gallery.main([], course) == 1
    assert "F01 has no claim" in capsys.readouterr().err


def test_a_chapter_that_was_not_run_is_left_out(course):
    (course.root / "notebooks" / f"{sample_course.STEM}.ipynb").unlink()
    assert gallery.chapters(course) == []


def test_a_build_keeps_the_gallery_of_a_course_that_has_one(course, monkeypatch):
    monkeypatch.setattr(build, "build", lambda *_: [])
    options = build.Options()
    assert build.build_all(course, [], options) == []
    assert not (course.root / gallery.PAGE).exists()
    gallery.main([], course)
    tell(course, [CLAIM | {"statement": "said anew"}])
    assert build.build_all(course, [], options) == []
    assert "said anew" in text(course)


# The course's own gallery


def test_the_gallery_is_in_step_with_the_receipts():
    assert gallery.problems(Course()) == []


def test_every_figure_of_the_receipts_is_on_the_page():
    course = Course()
    page = text(course)
    parts = re.split(r'<a id="([\w-]+)"></a>', page)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    told: dict[str, int] = {}
    for path in sorted((course.root / "docs" / "receipts").glob("ch*.json")):
        for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
            if claim["figure"] in gallery.FIGURES:
                assert claim["statement"] in sections[claim["figure"]]
                told[claim["figure"]] = told.get(claim["figure"], 0) + 1
    assert set(told) == set(sections)
    for name, count in told.items():
        assert len(re.findall(r"^- [*]", sections[name], re.M)) == count
        assert gallery.FIGURES[name].claim in sections[name]


def test_its_pictures_are_small():
    sizes = [p.stat().st_size for p in (Course().root / gallery.FOLDER).glob("*.png")]
    assert len(sizes) > 30 and max(sizes) <= 60_000
    assert sum(sizes) < 2_500_000
