"""What a comparison found, as a value: a row per net, a summary per method and depth, sentences and a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pnnh.report.comparison import as_read, comparison_page, frontier, reading
from pnnh.report.page import Page
from pnnh.report.table import show


@dataclass(frozen=True, repr=False)
class Results:
    """The results of `pnnh.compare`.

    cells: a row per net. settings: recipe, family and what else the nets have in common. evidence: command, date, code,
    versions, device and data, as every record has them.
    """

    cells: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    evidence: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """A line per method and depth: parameters, MACs, step time, mean and deviation of the test accuracy in %."""
        return summary(self.cells)

    def reading(self) -> list[str]:
        """Sentences that the rows support."""
        return reading(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Everything as a JSON-ready dict; `comparison_page` reads it."""
        return {"rows": list(self.cells), "summary": self.rows(), "settings": self.settings} | self.evidence

    def page(self) -> Page:
        """The report; `pnnh.report.html` makes a self-contained page of it."""
        return comparison_page(self.to_dict())

    def __repr__(self) -> str:
        lines = [f"{row['method']}-{row['depth']} {show(row['test_%'])} %" for row in as_read(self.rows())]
        return f"Results({self.evidence['data']['name']}: {', '.join(lines)})"

    def _repr_html_(self) -> str:
        rows = as_read(self.rows())
        head = "".join(f"<th>{key}</th>" for key in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{show(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
        said = "".join(f"<li>{line}</li>" for line in self.reading())
        return f"{frontier(self.to_dict())}<table><tr>{head}</tr>{body}</table><ul>{said}</ul>"


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per method and depth: mean and sample standard deviation over the `n` seeds that trained, in %.

    Where nets diverged each row counts its own; test_% is None if none of them trained. Where learning rates
    differ each row has its own.
    """
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["depth"]), []).append(row)
    some_diverged = any(row.get("diverged") for row in rows)
    several_rates = len({row.get("lr") for row in rows}) > 1
    table = []
    for (method, depth), group in sorted(cells.items(), key=lambda item: item[0][1]):
        trained = [row for row in group if not row.get("diverged")]
        test = [100 * row["test_accuracy"] for row in trained]
        speed = [row["step_ms"] for row in group if row.get("step_ms") is not None]
        table.append(
            {"method": method, "depth": depth, "params": group[0]["num_params"], "macs": group[0]["macs"]}
            | ({"lr": group[0].get("lr")} if several_rates else {})
            | {"test_%": round(statistics.mean(test), 2) if test else None}
            | {"std": round(statistics.stdev(test), 2) if len(test) > 1 else None, "n": len(test)}
            | ({"diverged": len(group) - len(trained)} if some_diverged else {})
            | {"step_ms": round(statistics.median_low(speed), 1) if speed else None}
        )
    return table
