"""Links between files: none is dead, and a planted dead one is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_house import ROOT, load_tool

links = load_tool("links")


@pytest.mark.parametrize(
    "page", links.pages(ROOT), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_dead_link(page):
    assert links.dead_links(page) == []


def page(folder: Path, text: str, name: str = "page.md") -> list[str]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return links.dead_links(path)


@pytest.mark.parametrize(
    "text",
    [
        "[a](other.md)",
        "[a](other.md#second-part)",
        '[a](other.md "title")',
        "[a](https://example.org/x.md) [b](mailto:a@b.c)",
        "# Top\n[a](#top)",
        "# Twice\n# Twice\n[a](#twice-1)",
        '<a id="here"></a>[a](#here)',
        "```\n[a](gone.md)\n```",
        "`[a](gone.md)`",
        "![p](with%20blank.png)",
        '<img src="with blank.png">',
        "# `code` & more\n[a](#code--more)",
    ],
)
def test_living_links(tmp_path, text):
    (tmp_path / "other.md").write_text("## Second part\n", encoding="utf-8")
    (tmp_path / "with blank.png").touch()
    assert page(tmp_path, text) == []


@pytest.mark.parametrize(
    "target", ["gone.md", "other.md#third", "#nowhere", "folder/gone.png"]
)
def test_dead_links(tmp_path, target):
    (tmp_path / "other.md").write_text("## Second part\n", encoding="utf-8")
    assert page(tmp_path, f"text [a]({target}) text") == [f"page.md: {target}"]
    assert page(tmp_path, f'<a href="{target}">a</a>') == [f"page.md: {target}"]


def test_links_of_notebooks_and_their_sources(tmp_path):
    source = ["see [a](gone.md)\n", "and [b](#none)"]
    cells = [
        {"cell_type": "markdown", "source": source},
        {"cell_type": "code", "source": "[x](also_gone.md)"},
    ]
    dead = page(tmp_path, json.dumps({"cells": cells}), "n.ipynb")
    assert dead == ["n.ipynb: gone.md", "n.ipynb: #none"]
    script = "# %% [markdown]\n# see [a](gone.md)\n\n# %%\nx = '[x](also_gone.md)'\n"
    assert page(tmp_path, script, "n.py") == ["n.py: gone.md"]
