"""Rows (mappings with the same keys) as a terminal table, CSV or JSON, and files written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
NAME_WIDTH = 22  # columns that a name keeps before numbers do
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def show(value: Any) -> str:
    """A cell as a person reads it: 1.2M for big counts, four significant digits, an em dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
            if abs(value) >= size:
                return f"{value / (1000 if unit == 'k' else size):.{2 if unit != 'k' else 0}f}{unit}"
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def printable(text: str) -> str:
    """`text` on one line, with control characters and undecodable bytes of file names written as escapes."""
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode() for mark in text
    )


def terminal(rows: Sequence[Row], title: str = ""):
    """A rich Table of `rows`; columns are the first row's keys. Nothing in a cell is read as markup."""
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title), style="italic") if title else None
    table = Table(title=heading, title_justify="left", header_style="bold")
    for key in rows[0] if rows else ():
        numeric = all(isinstance(row.get(key), (int, float, type(None))) for row in rows)
        least = None if numeric else min(NAME_WIDTH, max(len(show(row.get(key))) for row in rows))
        name = Text(printable(key.replace("_", " ")))
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*(Text(printable(show(value))) for value in row.values()))
    return table


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV. A text that a spreadsheet would run as a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)


def json_text(value: Any) -> str:
    """JSON with NaN and infinities as null, so that any reader takes it."""

    def clean(node):
        if isinstance(node, float) and not math.isfinite(node):
            return None
        if isinstance(node, Mapping):
            return {str(key): clean(item) for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return [clean(item) for item in node]
        return node

    return json.dumps(clean(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` so that `path` holds either its old content or all of the new: temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
