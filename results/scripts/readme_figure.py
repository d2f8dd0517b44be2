"""Write README.md's result sections and their figures from the records: no number there is typed.

    python results/scripts/readme_figure.py

Between `<!-- record NAME -->` and `<!-- end NAME -->` stands what results/NAME.json (of `pnnh compare`
or `pnnh bench`) says; the figure goes to docs/img/NAME.svg. A record that does not exist leaves its section empty.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pnnh.report.comparison import comparison_page, reading
from pnnh.report.table import show, write_text

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"(<!-- record (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
FIGURES = {"digits-56": "Training curves"}  # record -> the figure of its report that the README shows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    head = " | ".join(key.replace("_", " ") for key in rows[0])
    lines = [f"| {head} |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + [f"| {' | '.join(show(value) for value in row.values())} |" for row in rows])


def text(name: str, record: dict[str, Any]) -> str:
    """The section of one record: what it says, and where that comes from."""
    body = compared(name, record) if "summary" in record else timed(record)
    device, versions = record["device"], record["versions"]
    source = f"{device['name']}, {device['threads']} thread(s), torch {versions['torch']}, {record['date'][:10]}"
    return f"\n{body}\n\n{source}. Record: [results/{name}.json](results/{name}.json), from `{record['command']}`.\n\n"


def compared(name: str, record: dict[str, Any]) -> str:
    """A comparison: figure, setting, table, and what the numbers say."""
    figure = f"![{FIGURES[name]}](docs/img/{name}.svg)\n\n" if name in FIGURES else ""
    data, recipe = record["data"], record["settings"]["recipe"]
    sizes = f"{data['num_train']:,} images of {data['image_size']} px to train, {data['num_test']:,} to test"
    setting = f"{data['name']}: {sizes}"
    said = "\n".join(f"- {line}" for line in reading(record["summary"]))
    rows = [{key: value for key, value in row.items() if key != "img/s"} for row in record["summary"]]  # see the steps
    note = f"\n\n{record['note']}" if "note" in record else ""
    return f"{figure}{setting}, {recipe['epochs']} epochs.\n\n{table(rows)}\n\n{said}{note}"


def timed(record: dict[str, Any]) -> str:
    """Times side by side, a table per setting: as ratios to the first model, with the control."""
    return "\n\n".join(map(timed_cell, record.get("cells", [record])))


def timed_cell(cell: dict[str, Any]) -> str:
    columns = [
        *("model", "train_time", "train_interval", "train_verdict", "infer_time", "infer_interval", "infer_verdict"),
        *("train_peak_mb", "infer_peak_mb"),
    ]
    columns = [column for column in columns if column in cell["control"]]
    rows = [{column: row[column] for column in columns} for row in (*cell["rows"], cell["control"])]
    setting, pairs = cell["setting"], cell["setting"]["pairs"]
    size = "x".join(map(str, setting["input_size"]))
    how = f"{setting['batch_size']} images of {size} a step, {pairs} interleaved pairs; 1 is the first model's time."
    return f"{how}\n\n{table(rows)}"


def load(name: str) -> dict[str, Any] | None:
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def rendered(readme: str) -> str:
    """`readme` with every marked section written anew."""

    def section(match: re.Match) -> str:
        record = load(match[2])
        return match[1] + (text(match[2], record) if record else "") + match[3]

    return SECTION.sub(section, readme)


def main() -> None:
    readme = ROOT / "README.md"
    write_text(readme, rendered(readme.read_text()))
    for name, title in FIGURES.items():
        if record := load(name):
            (section,) = (section for section in comparison_page(record).sections if section.title == title)
            write_text(ROOT / "docs" / "img" / f"{name}.svg", section.svgs[0])


if __name__ == "__main__":
    main()
