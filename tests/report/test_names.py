"""Names that markup, spreadsheets, formulas or terminals would read as something else come out as they are."""

import csv
import io
import json

import pytest
from rich.console import Console

from pnnh import report
from pnnh.report.table import printable

NAMES = [
    "[red]x[/red]",
    "a$x_$",
    "=1+1",
    "@cmd",
    "+1",
    "\x1b[31mred",
    "two\nlines",
    "\udcff.png",
    "<b>&amp;",
    "a|b",
    "é·χ",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_terminal_shows_the_name_and_its_controls_as_escapes(name):
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    console.print(report.terminal([{"model": name, "n": 1}], name))
    text = console.file.getvalue().replace("\x1b[3m", "").replace("\x1b[0m", "").replace("\x1b[1m", "")
    assert text.count(printable(name)) == 2
    assert "\x1b[31m" not in text


@pytest.mark.parametrize("name", NAMES)
def test_csv_holds_no_formula_and_reads_back(name):
    text = report.csv_text([{"model": name, "value": -1.5}])
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {"model": ("'" if name[0] in "=+-@" else "") + printable(name), "value": "-1.5"}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_and_its_figures_take_any_name(name, tmp_path):
    with report.draw() as figure:
        figure.axes.set_title(printable(name).encode("ascii", "replace").decode())
    page = report.html(report.Page(name, name, [report.Section(name, rows=[{name: name}], svgs=[figure.svg])]))
    assert "<b>" not in page.replace("<b></b>", "")
    assert "\x1b" not in page
    assert "<svg" in page
    report.write_text(tmp_path / "page.html", page)
    assert (
        json.loads(report.write_text(tmp_path / "x.json", report.json_text({"name": name})).read_text())["name"] == name
    )


@pytest.mark.parametrize("name", NAMES)
def test_markdown_keeps_one_row_a_line(name):
    lines = report.markdown([{"model": name}]).splitlines()
    assert len(lines) == 3
    assert lines[2].replace("\\|", "").count("|") == 2
