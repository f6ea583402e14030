"""Each paper that is cited stands in docs/references.bib, whose entries are sound."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIB = ROOT / "docs" / "references.bib"
ENTRY = re.compile(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^\s+(\w+)\s*=\s*\{(.*)\},?$", re.MULTILINE)
# Year and month, then five digits; four digits only behind the word arXiv.
CITED = re.compile(r"(?<![\d.])((?:1[3-9]|2\d)(?:0[1-9]|1[0-2])\.\d{5})(?![\d.]*\d)")
NAMED = re.compile(r"arXiv[: ]\s*(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", re.IGNORECASE)
PLACES = ("README.md", "docs/*.md", "notebooks/*.py", "solutions/*.py")
REQUIRED = {
    "article": {"title", "author", "year", "journal"},
    "inproceedings": {"title", "author", "year", "booktitle"},
    "misc": {"title", "author", "year", "eprint"},
}


def entries() -> list[tuple[str, str, dict[str, str]]]:
    text = BIB.read_text(encoding="utf-8")
    return [(m[1], m[2], dict(FIELD.findall(m[3]))) for m in ENTRY.finditer(text)]


def cited_in(text: str) -> set[str]:
    """The arXiv ids that a text names."""
    return set(CITED.findall(text)) | set(NAMED.findall(text))


def sources() -> list[Path]:
    found = [p for pattern in PLACES for p in ROOT.glob(pattern)]
    return sorted(found + list(ROOT.glob("diffedu/**/*.py")))


def test_every_entry_is_read():
    text = BIB.read_text(encoding="utf-8")
    assert len(entries()) == len(re.findall(r"^@", text, re.MULTILINE)) > 30


def test_keys_and_ids_are_unique():
    keys = Counter(key for _, key, _ in entries())
    assert [k for k, n in keys.items() if n > 1] == []
    ids = Counter(f["eprint"] for _, _, f in entries() if "eprint" in f)
    assert [k for k, n in ids.items() if n > 1] == []


@pytest.mark.parametrize("entry", entries(), ids=lambda e: e[1])
def test_entry_is_well_formed(entry):
    kind, key, fields = entry
    assert REQUIRED[kind] <= set(fields), key
    assert re.fullmatch(r"[a-z]+(19|20)\d\d[a-z]*", key)
    assert re.fullmatch(r"(19|20)\d\d", fields["year"])
    if "eprint" in fields:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
        assert fields["archiveprefix"] == "arXiv"
        # A paper appears no earlier than its preprint.
        assert int(fields["year"]) >= 2000 + int(fields["eprint"][:2])
    for value in fields.values():
        assert value.count("{") == value.count("}")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_cited_papers_are_listed(path):
    known = {fields.get("eprint") for _, _, fields in entries()}
    assert cited_in(path.read_text(encoding="utf-8")) - known == set()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("(2006.11239, eq. 7)", {"2006.11239"}),
        ("arXiv:1503.03585v8 and arXiv 0704.0001", {"1503.03585", "0704.0001"}),
        ("loss 0.12345, 1000.12345, 12.3456, 2.00611239", set()),
        ("version 2006.1123", set()),
        ("(2209.03003; 2210.02747).", {"2209.03003", "2210.02747"}),
        ("2413.12345 has no such month", set()),
    ],
)
def test_citations_are_recognised(text, ids):
    assert cited_in(text) == ids
