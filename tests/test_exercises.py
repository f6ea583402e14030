"""Every chapter's exercises: stubs fail, solutions pass, wrong answers are named."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from subprocess import DEVNULL
from types import ModuleType
from typing import Any

import nbformat
import pytest
import sample_course
import strip
from chapters import Course, content, points, role
from chapters import read as read_script
from execute import environment
from nbclient import NotebookClient
from pairs import load_pair, same_exercise

import diffedu.checks
from diffedu.checks.machinery import CheckFailed, Exercise

torch = pytest.importorskip("torch")

COURSE = Course()
SOLUTIONS = COURSE.scripts(kinds=("solutions",))
WRONG = COURSE.root / "tests" / "wrong_answers"
DRAWS, LEAST_WRONG, LEAST_HINTS = 20, 3, 3


def chapter(path: Path) -> str:
    return path.stem.split("_")[0]


def checks_module(name: str) -> ModuleType:
    return importlib.import_module(f"diffedu.checks.{name}")


def exercises_of(module: ModuleType) -> dict[str, Exercise]:
    return {k: v for k, v in vars(module).items() if isinstance(v, Exercise)}


def wrong_answers(name: str) -> dict[str, list[tuple[Any, str]]]:
    path = WRONG / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"wrong_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


CHECKED = sorted(
    p.stem
    for p in Path(diffedu.checks.__file__).parent.glob("ch[0-9][0-9]*.py")
    if "_" not in p.stem
)
ALL_CHECKS = [(n, e) for n in CHECKED for e in exercises_of(checks_module(n))]
WRONG_CASES = [
    (name, exercise, number)
    for name in CHECKED
    if (WRONG / f"{name}.py").is_file()
    for exercise, cases in wrong_answers(name).items()
    for number in range(len(cases))
]


@cache
def solved(script: Path) -> dict[str, Any]:
    """The names that a solution's cells define, its checks left out."""
    names: dict[str, Any] = {"__name__": "solution"}
    before = Path.cwd()
    os.chdir(script.parent)
    try:
        for cell in read_script(script).cells:
            if cell.cell_type == "code" and (role(cell) or ("", ""))[0] != "check":
                exec(compile(cell.source, script.name, "exec"), names)
    finally:
        os.chdir(before)
    return names


def statements(nb: Any) -> list[str]:
    cells = [c.source for c in nb.cells if c.cell_type == "markdown"]
    return [text for text in cells if text.startswith("## Exercise ")]


def statement_complaints(nb: Any) -> Iterator[str]:
    """Title, difficulty, minutes and hints of each exercise."""
    for number, text in enumerate(statements(nb), 1):
        title = text.split("\n")[0]
        if not re.fullmatch(rf"## Exercise {number}\. \S.*", title):
            yield f"{title!r} should read '## Exercise {number}. Title'"
        if not re.search(r"^\*Difficulty [1-5] of 5 · \d+ minutes\*$", text, re.M):
            yield f"{title}: no line '*Difficulty 2 of 5 · 15 minutes*'"
        hints = len(re.findall(r"<details><summary>Hint \d", text))
        least = 1 if by_hand(nb, title) else LEAST_HINTS
        if hints < least:
            yield f"{title}: {hints} hints, at least {least} are wanted"
        if hints != text.count("</details>"):
            yield f"{title}: a hint is not closed with </details>"


def by_hand(nb: Any, title: str) -> bool:
    """Whether the exercise of that title has no check of its own."""
    inside = False
    for cell in nb.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## Exercise "):
            inside = cell.source.split("\n")[0] == title
        elif inside and (role(cell) or ("", ""))[0] == "check":
            return False
    return True


def cell_complaints(nb: Any) -> Iterator[str]:
    """Solutions with checks, checks with solutions, and valid nbgrader metadata."""
    roles = [(cell, *role(cell)) for cell in nb.cells if role(cell)]
    solution = [name for _, kind, name in roles if kind == "solution"]
    checked = [name for _, kind, name in roles if kind == "check"]
    if solution != checked:
        yield f"solutions {solution} and checks {checked} differ"
    for cell, kind, name in roles:
        blocks = cell.source.count(strip.SOLUTION[0])
        if kind == "solution" and blocks != 1:
            yield f"solution:{name} has {blocks} solution blocks"
        if kind != "solution" and not points(cell):
            yield f"{kind}:{name} is worth no points"
        yield from metadata_complaints(dict(cell.metadata.nbgrader), name)
    ids = [cell.metadata.nbgrader["grade_id"] for cell, *_ in roles]
    if len(set(ids)) < len(ids):
        yield f"grade ids repeat: {ids}"


TABLE = {  # (grade, solution, locked, task) -> whether it has points
    (False, False, True, False): False,
    (False, True, False, False): False,
    (True, False, True, False): True,
    (True, True, False, False): True,
    (False, False, True, True): True,
}


def metadata_complaints(meta: dict[str, Any], name: str) -> Iterator[str]:
    row = tuple(meta[k] for k in ("grade", "solution", "locked", "task"))
    if TABLE.get(row) != ("points" in meta) or meta["schema_version"] != 3:
        yield f"{name}: nbgrader knows no such cell: {meta}"


def leak_complaints(solution: Any, exercise: Any) -> Iterator[str]:
    lines = {x.strip() for cell in exercise.cells for x in cell.source.split("\n")}
    for line in sorted(strip.solution_lines(solution) & lines):
        yield f"the exercise holds a line of the solution: {line!r}"
    if any("BEGIN SOLUTION" in line or "HIDDEN TESTS" in line for line in lines):
        yield "the exercise holds a marker"
    if any(cell.get("outputs") for cell in exercise.cells):
        yield "the exercise holds outputs"


def stub_complaints(exercise: Any, folder: Path) -> Iterator[str]:
    """Execute the exercise with errors allowed: each check must fail on its stub."""
    places = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        exercise, timeout=120, allow_errors=True, kernel_name="python3",
        resources=places,
    )  # fmt: skip
    client.execute(env=environment(Path(os.devnull), "cpu", COURSE), stderr=DEVNULL)
    for cell in exercise.cells:
        kind, name = role(cell) or ("", "")
        if kind == "check":
            errors = [o for o in cell.outputs if o.output_type == "error"]
            if not errors:
                yield f"check:{name} passes on the stub"
            elif not re.search("not written yet|not defined", errors[0].evalue):
                yield f"check:{name} fails on the stub by {errors[0].evalue!r}"


def refuse(complaints: Iterator[str]) -> None:
    assert list(complaints) == []


@pytest.mark.parametrize("script", SOLUTIONS, ids=chapter)
def test_exercises_are_complete(script):
    nb = load_pair(script)
    assert 4 <= len(statements(nb)) <= 6 or chapter(script) == "ch00"
    refuse(statement_complaints(nb))
    refuse(cell_complaints(nb))


@pytest.mark.parametrize("script", SOLUTIONS, ids=chapter)
def test_exercises_are_what_the_solutions_make(script):
    solution = read_script(script)
    exercise = nbformat.read(COURSE.exercise(script.stem), as_version=4)
    assert content(exercise) == content(strip.release(solution))
    assert same_exercise(COURSE, script.stem, load_pair(script))
    refuse(leak_complaints(solution, exercise))


@pytest.mark.slow
@pytest.mark.parametrize("script", SOLUTIONS, ids=chapter)
def test_every_check_fails_on_its_stub(script):
    exercise = nbformat.read(COURSE.exercise(script.stem), as_version=4)
    refuse(stub_complaints(exercise, COURSE.root / "exercises"))


@pytest.mark.parametrize("script", SOLUTIONS, ids=chapter)
def test_every_check_is_used_and_has_its_name(script):
    tagged = {role(c)[1] for c in read_script(script).cells
              if (role(c) or ("",))[0] == "check"}  # fmt: skip
    exercises = exercises_of(checks_module(chapter(script)))
    assert tagged == set(exercises)
    assert all(name == exercise.name for name, exercise in exercises.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
@pytest.mark.parametrize(("name", "exercise"), ALL_CHECKS)
def test_the_solution_passes_on_fresh_draws(name, exercise, dtype):
    (script,) = [s for s in SOLUTIONS if chapter(s) == name]
    answer = solved(script)[exercise]
    check = getattr(checks_module(name), exercise)
    rounds = -(-DRAWS // check.draws) if check.truth else 2
    verdicts = [check.verdict(answer, 1000 * k + 17, dtype) for k in range(rounds)]
    assert verdicts == [""] * rounds


@pytest.mark.parametrize(("name", "exercise", "number"), WRONG_CASES)
def test_a_wrong_answer_is_told_by_name(name, exercise, number):
    answer, words = wrong_answers(name)[exercise][number]
    check = getattr(checks_module(name), exercise)
    for seed in range(3):
        with pytest.raises(CheckFailed) as failure:
            check(answer, seed=1000 * seed + 5)
        assert words in str(failure.value)


@pytest.mark.parametrize(("name", "exercise"), ALL_CHECKS)
def test_wrong_answers_are_enough_and_their_messages_differ(name, exercise):
    cases = wrong_answers(name).get(exercise, [])
    check = getattr(checks_module(name), exercise)
    assert len(cases) >= LEAST_WRONG
    told = [check.verdict(answer, 5) for answer, _ in cases]
    assert len(set(told)) >= LEAST_WRONG
    mine = [*check.mistakes, *(p.message for p in check.properties)]
    assert len(set(mine)) == len(mine)


# The rules themselves: each finds what it is there for.


@pytest.fixture
def sample(tmp_path):
    course = sample_course.make(tmp_path)
    return course.root / "solutions" / f"{sample_course.STEM}.py"


def test_the_sample_has_nothing_to_complain_of(sample):
    nb = read_script(sample)
    refuse(cell_complaints(nb))
    refuse(leak_complaints(nb, strip.release(nb)))
    assert solved(sample)["twice"](2) == 4


def test_hints_are_counted(sample):
    nb = read_script(sample)
    assert list(statement_complaints(nb)) == [
        "## Exercise 1. Twice: 1 hints, at least 3 are wanted",
        "## Exercise 2. Why: 0 hints, at least 1 are wanted",
    ]


STATEMENTS = [
    ("## Exercise 1. Twice", "## Exercise 2. Twice", "should read '## Exercise 1."),
    ("*Difficulty 1 of 5", "*Difficulty 6 of 5", "no line '*Difficulty"),
    ("</details>", "", "not closed"),
]


@pytest.mark.parametrize(("old", "new", "words"), STATEMENTS)
def test_bad_statements_are_found(sample, old, new, words):
    sample.write_text(sample.read_text().replace(old, new, 1))
    complaints = list(statement_complaints(read_script(sample)))
    assert any(words in each for each in complaints)


CELLS = [
    ('"check:twice"', '"check:thrice"', "differ"),
    ("### BEGIN SOLUTION", "# begin", "has 0 solution blocks"),
    ("points:2", "points:0", "worth no points"),
    ('"answer:why"', '"answer:twice"', "grade ids repeat"),
]


@pytest.mark.parametrize(("old", "new", "words"), CELLS)
def test_bad_cells_are_found(sample, old, new, words):
    sample.write_text(sample.read_text().replace(old, new, 1))
    complaints = list(cell_complaints(read_script(sample)))
    assert any(words in each for each in complaints)


def test_a_task_that_is_not_locked_is_found():
    meta = dict(grade=False, solution=False, locked=False, task=True, points=1)
    assert "no such cell" in next(
        metadata_complaints(meta | {"schema_version": 3}, "x")
    )


def test_a_leak_is_found(sample):
    nb = read_script(sample)
    exercise = strip.release(nb)
    exercise.cells[-1].source += "\nreturn doubled"
    assert "return doubled" in next(leak_complaints(nb, exercise))
    whole = list(leak_complaints(nb, nb))
    assert "the exercise holds a marker" in whole and len(whole) == 4


@pytest.mark.slow
def test_a_check_that_says_nothing_is_found(sample):
    text = sample.read_text()
    sample.write_text(text.replace("twice_check(twice)", "print(twice)"))
    exercise = strip.release(read_script(sample))
    assert list(stub_complaints(exercise, sample.parent)) == [
        "check:twice passes on the stub"
    ]
