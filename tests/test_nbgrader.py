"""nbgrader for real: an assignment made from a solution, handed in, graded.

Skipped where nbgrader is not installed: it is needed by who teaches, not who learns.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import sample_course
import strip
from chapters import Course, content, points, read, role

pytest.importorskip("nbgrader")

from nbgrader.api import Gradebook  # noqa: E402
from nbgrader.apps.api import NbGraderAPI  # noqa: E402
from traitlets.config import Config  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*not in session"),
]
COURSE = Course()
SOLUTIONS = COURSE.scripts(kinds=("solutions",))
GRADED = [script for script in SOLUTIONS if script.stem[:4] == "ch01"]


class Classroom:
    """One assignment: made from a solution, handed in by some students, graded."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.folder, self.script = folder, script
        self.stem, self.solution = script.stem, read(script)
        self.config = Config()
        self.config.CourseDirectory.root = str(folder)
        self.config.CourseDirectory.db_url = f"sqlite:///{folder / 'gradebook.db'}"
        self.config.ExecutePreprocessor.timeout = 120
        source = folder / "source" / "ps1" / f"{self.stem}.ipynb"
        source.parent.mkdir(parents=True)
        nbformat.write(self.solution, source)
        self.api = NbGraderAPI(config=self.config)

    def release(self) -> Any:
        done = self.api.generate_assignment("ps1")
        assert done["success"], done["log"] + (done.get("error") or "")
        path = self.folder / "release" / "ps1" / f"{self.stem}.ipynb"
        return nbformat.read(path, as_version=4)

    def hand_in(self, student: str, nb: Any) -> None:
        path = self.folder / "submitted" / student / "ps1" / f"{self.stem}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(nb, path)

    def grade(self) -> dict[str, float]:
        for student in sorted(p.name for p in (self.folder / "submitted").iterdir()):
            done = self.api.autograde("ps1", student)
            assert done["success"], done["log"] + (done.get("error") or "")
        with Gradebook(self.config.CourseDirectory.db_url) as book:
            handed = book.assignment_submissions("ps1")
            return {s.student.id: s.score for s in handed}

    def automatic_points(self) -> int:
        kinds = [(role(cell), points(cell)) for cell in self.solution.cells]
        return sum(worth for kind, worth in kinds if kind and kind[0] == "check")


def answered(released: Any, solution: Any, change: Any = None) -> Any:
    """The released notebook with answers, the code changed by `change`."""
    nb = nbformat.from_dict(released)
    for cell, right in zip(nb.cells, solution.cells, strict=True):
        if (role(right) or ("",))[0] == "solution":
            markers = re.escape(strip.SOLUTION[0]), re.escape(strip.SOLUTION[1])
            source = re.sub(rf"[ \t]*({'|'.join(markers)})\n?", "", right.source)
            cell.source = change(source) if change else source
        elif (role(right) or ("",))[0] == "answer":
            cell.source = "My own words."
    return nb


def wrong(source: str) -> str:
    """A function of the same name that answers nonsense of the right kind."""
    names = re.findall(r"^def (\w+)", source, re.M)
    return source + "".join(f"\n{n} = lambda *a, **k: 12345.0" for n in names)


def copy(nb: Any) -> Any:
    return nbformat.reads(nbformat.writes(nb), as_version=4)


@pytest.fixture(scope="module", autouse=True)
def programs():
    """nbgrader calls alembic by name: put this environment's programs on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(COURSE.root / "tests" / "no_network"))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    course = sample_course.make(folder / "course")
    room = Classroom(folder / "room", course.root / "solutions" / "ch01_sample.py")
    released = room.release()
    tampered = copy(released)
    check = next(c for c in tampered.cells if (role(c) or ("",))[0] == "check")
    check.source = "pass  # an empty answer whose check was taken out"
    room.hand_in("right", answered(copy(released), room.solution))
    room.hand_in("wrong", answered(copy(released), room.solution, wrong))
    room.hand_in("empty", tampered)
    return room, released, room.grade()


@pytest.mark.parametrize(
    ("student", "score"), [("right", 2), ("wrong", 0), ("empty", 0)]
)
def test_a_class_gets_its_points(sample, student, score):
    room, _, scores = sample
    assert room.automatic_points() == 2
    assert scores[student] == score


def test_what_is_graded_by_hand_waits(sample):
    room, _, _ = sample
    with Gradebook(room.config.CourseDirectory.db_url) as book:
        grade = book.find_submission_notebook("ch01_sample", "ps1", "right")
        assert grade.needs_manual_grade and grade.max_score == 5


def test_nbgrader_makes_the_same_exercise(sample):
    room, released, _ = sample
    same_text(released, strip.release(room.solution))


def same_text(released: Any, exercise: Any) -> None:
    """Compare sources and ids: nbgrader adds its own checksums to the metadata."""
    left = [(kind, source) for kind, source, *_ in content(released)]
    right = [(kind, source) for kind, source, *_ in content(exercise)]
    assert left == right
    assert [c.id for c in released.cells] == [c.id for c in exercise.cells]


@pytest.mark.parametrize("script", SOLUTIONS, ids=lambda p: p.stem.split("_")[0])
def test_a_chapter_becomes_an_assignment(script, tmp_path):
    released = Classroom(tmp_path, script).release()
    exercise = nbformat.read(COURSE.exercise(script.stem), as_version=4)
    same_text(released, exercise)


@pytest.mark.parametrize(
    "script",
    [s for s in SOLUTIONS if s.stem[:4] == "ch01"],
    ids=lambda p: p.stem.split("_")[0],
)
def test_a_real_chapter_is_graded(script, tmp_path):
    room = Classroom(tmp_path, script)
    released = room.release()
    room.hand_in("right", answered(copy(released), room.solution))
    room.hand_in("wrong", answered(copy(released), room.solution, wrong))
    room.hand_in("empty", copy(released))
    best = room.automatic_points()
    assert best > 0
    assert room.grade() == {"right": best, "wrong": 0, "empty": 0}
