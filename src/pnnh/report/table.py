"""Rows (dicts with the same keys) -> a terminal table, CSV, JSON. The rows' makers never print."""

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


def terminal(rows: Sequence[Row], title: str = ""):
    """A rich Table of `rows`; columns are the first row's keys."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for key in rows[0] if rows else ():
        numeric = all(isinstance(row.get(key), (int, float, type(None))) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(show(value) for value in row.values()))
    return table


def csv_text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
