"""docs/records/ says what the records in results/ say, docs/api.md what the docstrings say."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results" / "scripts")
    import pages

    yield pages
    for name in ("pages", "_bodies"):
        sys.modules.pop(name)


def test_the_pages_are_those_of_the_records(pages):
    for page in pages.PAGES:
        file = ROOT / "docs" / "records" / f"{page.name}.md"
        written = file.read_text() if file.exists() else ""
        assert pages.rendered(page) == written, "run python results/scripts/pages.py"


def test_every_record_is_on_a_page(pages):
    shown = {name for page in pages.PAGES for name, _ in pages.records(page)}
    assert {file.stem for file in (ROOT / "results").glob("*.json")} == shown


def test_a_range_over_seeds_ends_with_never(pages):
    assert sys.modules["_bodies"]._range([None, 31, 55]) == "31 to never"
    assert sys.modules["_bodies"]._range([None, None]) == "never"
    assert sys.modules["_bodies"]._range([4, 4]) == "4"


def test_every_record_names_its_command_code_and_versions():
    for file in (ROOT / "results").glob("*.json"):
        record = json.loads(file.read_text())
        found = record.get("evidence", record)
        assert {"command", "versions", "device", "date"} <= found.keys(), file.name
        assert "code_version" in found or "code" in found, file.name


def test_the_reference_is_that_of_the_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results" / "scripts")
    import api

    assert api.rendered() == (ROOT / "docs" / "api.md").read_text(), "run python results/scripts/api.py"
    sys.modules.pop("api")
