"""Rows (dicts with the same keys) as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from pnnh.report.table import Row, printable, show


def markdown(rows: Sequence[Row]) -> str:
    """A pipe table of `rows`, numbers right-aligned; the columns are the first row's keys. No rows: an empty text."""
    if not rows:
        return ""
    columns = list(rows[0])
    numeric = [all(_is_number(row.get(column)) for row in rows) for column in columns]
    lines = [[column.replace("_", " ") for column in columns], ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(show(row.get(column))) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(text: str) -> str:
    return printable(text.replace("\n", " ")).replace("|", "\\|")
