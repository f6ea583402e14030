"""The registry of methods: the survey's table 2, and that what it names exists."""

from __future__ import annotations

import re

import pytest

from diffedu import representations
from diffedu.figures import FIGURES, notebook_of
from diffedu.representations.methods import HEADER, METHODS, table_2, table_2_text

# Typed from the survey (2407.00783, table 2), not from the registry.
SURVEY = {
    "generative augmentation": {
        "classification": ["Generative Augmentation", "MA-ZSC"],
        "segmentation": ["ScribbleGen"],
    },
    "leveraging intermediate activations": {
        "classification": ["GDC", "DifFormer", "DDAE"],
        "semantic segmentation": ["DDPM-Seg", "VPD"],
        "panoptic segmentation": ["ODISE"],
        "semantic correspondence": [
            "DIFT",
            "SD+DINO",
            "Diffusion Hyperfeatures",
            "SD4Match",
            "USCSD",
        ],
        "depth": ["VPD"],
        "image editing": ["prompt-to-prompt", "Plug-and-Play"],
    },
    "diffusion model reconstruction": {
        "classification": ["SODA", "l-DAE", "DiffMAE"],
        "segmentation": ["MDM"],
        "image editing": ["DiffAE", "PDAE"],
        "interpolation": ["InfoDiffusion", "SmoothDiffusion"],
    },
    "knowledge transfer": {
        "classification": ["Diffusion Classifier", "RepFusion", "DreamTeacher"],
    },
    "joint diffusion models": {
        "classification": ["JDM", "HybViT"],
        "segmentation": ["ADDP"],
    },
}


def name_of(method) -> str:
    return f"{method.name}, {method.task}"


BUILT = [m for m in METHODS if m.where is not None]
HERE = [m for m in BUILT if notebook_of(m.chapter)]


def test_the_rows_are_the_surveys_in_its_order():
    expected = [
        (paradigm, task, name)
        for paradigm, tasks in SURVEY.items()
        for task, names in tasks.items()
        for name in names
    ]
    assert [row[:3] for row in table_2()] == expected


def test_chapters_10_to_12_are_built_and_later_ones_to_come():
    for method in METHODS:
        number = int(re.fullmatch(r"ch(\d\d)[ab]?", method.chapter)[1])
        assert (method.where is not None) == (number <= 12), method
        assert re.fullmatch(r"\d{4}\.\d{5}", method.paper)
    assert all(method.figure in FIGURES for method in BUILT)


@pytest.mark.parametrize("method", [m for m in METHODS if m.where is None], ids=name_of)
def test_what_is_to_come_has_no_chapter_yet(method):
    script = notebook_of(method.chapter)
    assert script is None, f"{script.name} is here: name {method.name}'s code in it"
    assert method.function == method.shown == "to come"
    with pytest.raises(ValueError, match="to come in chapter"):
        method.code  # noqa: B018


@pytest.mark.parametrize("method", HERE, ids=name_of)
def test_what_is_built_exists_and_its_chapter_shows_it(method):
    assert callable(method.code)
    text = notebook_of(method.chapter).read_text(encoding="utf-8")
    name = method.where.split(":")[1]
    assert re.search(rf"\b{name}\b", text), f"{method.chapter} does not use {name}"
    assert method.paper in text, f"{method.chapter} does not cite {method.paper}"


@pytest.mark.parametrize("method", [m for m in HERE if m.figure], ids=name_of)
def test_its_figure_is_registered_and_drawn(method):
    assert FIGURES[method.figure].chapter == method.chapter
    text = notebook_of(method.chapter).read_text(encoding="utf-8")
    assert f'tags=["{method.figure}"]' in text
    assert method.shown == method.figure


def test_the_table_prints_as_text_and_as_markdown():
    lines = table_2_text(markdown=True).splitlines()
    assert [tuple(x.strip("| ").split(" | ")) for x in lines[2:]] == table_2()
    assert lines[0] == f"| {' | '.join(HEADER)} |"
    assert set(lines[1]) == set("| -")
    plain = table_2_text().splitlines()
    assert len(plain) == len(METHODS) + 1
    assert sum(line.startswith("knowledge transfer") for line in plain) == 1
    at = plain[0].index("function")
    assert [line[at:].split("  ")[0] for line in plain[1:]] == [
        row[HEADER.index("function")] for row in table_2()
    ]


def test_the_registry_is_public():
    assert representations.table_2() == table_2()
    gdc = next(m for m in representations.METHODS if m.name == "GDC")
    assert gdc.function == "features.heads.MLP" and gdc.shown == "F33"
