"""One page of HTML: self-contained, evidence as a table, every cell named for narrow screens."""

from pnnh.report import Page, Section, html
from pnnh.report.page import evidence_of

RECORD = {
    "command": "pnnh compare",
    "date": "2026-01-01",
    "code_version": "abc",
    "versions": {"python": "3.11", "torch": "2.0", "absent": None},
    "device": {"type": "cpu", "name": "A CPU", "threads": 2},
}


def test_evidence_is_a_table_of_names_and_values():
    page = html(Page("T", "lead", [], evidence_of(RECORD, Seeds="0, 1")))
    for name, value in (("Versions", "python 3.11, torch 2.0"), ("Device", "A CPU, 2 thread(s)"), ("Seeds", "0, 1")):
        assert f"<th>{name}</th><td>{value}</td>" in page
    assert "{&#39;" not in page


def test_lines_of_evidence_and_rows_are_escaped():
    page = html(Page("T", "lead", [Section("S", rows=[{"a_b": "<i>", "n": 12345}])], ["one <b>"]))
    assert "one &lt;b&gt;" in page
    assert '<td title="a b">&lt;i&gt;</td>' in page
    assert ">12k</td>" in page


def test_the_page_needs_no_network_and_no_script():
    page = html(Page("T", "lead", [Section("S", svgs=["<svg></svg>"] * 2)]))
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert 'class="figures"' in page
    assert "prefers-color-scheme: dark" in page
