"""The tables of docs/benchmarking.md, from the records: no number is typed.

    python results/scripts/bench_tables.py

Between `<!-- record NAME -->` and `<!-- end NAME -->` of the page stands what results/NAME.json says; a section without
a record says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pnnh.report import bench_reading, of_work, write_text
from pnnh.report.table import show

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarking.md"
SECTION = re.compile(r"(<!-- record (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
WORKS = ("train", "infer", "latency")
LARGEST = 7


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [f"| {' | '.join(key.replace('_', ' ') for key in rows[0])} |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + [f"| {' | '.join(show(value) for value in row.values())} |" for row in rows])


def account(record: dict[str, Any]) -> str:
    """Totals, their ratios to the residual twin, and the bytes by kind side by side."""
    nets = [row["model"] for row in record["totals"]]
    kinds = sorted({(row["phase"], row["kind"]) for row in record["rows"]})
    cells = {(row["model"], row["phase"], row["kind"]): row["gigabytes"] for row in record["rows"]}
    bytes_ = [
        {"GB moved": f"{phase} {kind}"} | {net: round(cells.get((net, phase, kind), 0.0), 3) for net in nets}
        for phase, kind in kinds
    ]
    bytes_ = [row for row in bytes_ if max(row[net] for net in nets) >= 0.005]
    head = f"{record['batch_size']} images of 3x32x32, one training step; ratios to {nets[0]}:"
    return "\n\n".join([head, table(record["totals"]), table(record["ratios"]), table(bytes_)])


def benchmark(record: dict[str, Any]) -> str:
    """Every setting: what is claimed, the times, the largest kinds of operators beside their roofline."""
    parts = []
    for cell in record["cells"]:
        rows = [*cell["rows"], cell["control"]]
        times = [{"work": work} | of_work(row, work) for work in WORKS for row in rows]
        said = "\n".join(f"- {line}" for line in bench_reading(cell))
        parts += [f"**{cell['title']}**", said, table(times)]
        for model, kinds in cell["rooflines"].items():
            parts += [f"{model}, one training step:", table([*kinds[:LARGEST], kinds[-1]])]
    return "\n\n".join(parts)


def text(name: str) -> str:
    path = ROOT / "results" / f"{name}.json"
    if not path.is_file():
        return "\nNo record yet.\n\n"
    record = json.loads(path.read_text())
    body = account(record) if "totals" in record else benchmark(record) if "cells" in record else table(record["rows"])
    return f"\n{body}\n\nRecord: [results/{name}.json](../results/{name}.json), from `{record['command']}`.\n\n"


def rendered(page: str) -> str:
    """`page` with every marked section written anew."""
    return SECTION.sub(lambda match: match[1] + text(match[2]) + match[3], page)


if __name__ == "__main__":
    write_text(PAGE, rendered(PAGE.read_text()))
