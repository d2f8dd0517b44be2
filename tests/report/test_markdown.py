"""Rows as Markdown."""

from pnnh.report import markdown


def test_a_table_has_its_columns_aligned_and_its_cells_escaped():
    rows = [{"net_name": "a|b", "test_%": 93.456789, "ok": True}, {"net_name": "c\nd", "test_%": None, "ok": False}]
    assert markdown(rows).splitlines() == [
        "| net name | test % | ok |",
        "| --- | ---: | --- |",
        "| a\\|b | 93.46 | yes |",
        "| c d | — | no |",
    ]


def test_columns_are_those_of_the_first_row_and_no_rows_are_no_table():
    assert markdown([{"a": 1}, {"a": 2, "b": 3}]).splitlines()[-1] == "| 2 |"
    assert markdown([]) == ""
