"""The tables of docs/training-deep-plain-nets.md, from the records: no number is typed.

    python results/scripts/training_tables.py

Between `<!-- record NAME -->` and `<!-- end NAME -->` of the page stands what the records say; a section without a
record says so. `depth` draws on every record of `pnnh compare` on CIFAR-10 in results/.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pnnh.recipes import summary
from pnnh.report import write_text
from pnnh.report.comparison import accuracy
from pnnh.report.table import show

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training-deep-plain-nets.md"
SECTION = re.compile(r"(<!-- record (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
KINDS = ("coder fixed Dirac", "coder fixed orthogonal", "coder per layer")
ABLATION = ("default", *KINDS, "coder rate 1")


def of(name: str, body: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """What `body` makes of the record results/NAME.json; nothing before there is one."""

    def text() -> str:
        path = ROOT / "results" / f"{name}.json"
        return body(json.loads(path.read_text())) if path.is_file() else ""

    return text


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + [f"| {' | '.join(show(value) for value in row.values())} |" for row in rows])


def link(name: str, script: str) -> str:
    return f"Record: [results/{name}.json](../results/{name}.json), from `{script}`."


def spread(values: list[float]) -> str:
    """Mean, sample standard deviation where there is one, and the number of values, in %."""
    text = f"{100 * statistics.mean(values):.1f}"
    return f"{text} +- {100 * statistics.stdev(values):.1f} ({len(values)})" if len(values) > 1 else f"{text} (1)"


def by_idea(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    ideas: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        ideas.setdefault(row["idea"], []).append(row)
    return ideas


def effect(rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Points above the nets of `base`, over the seeds that both have."""
    by_seed = {row["seed"]: row["held_out_accuracy"] for row in base}
    gaps = [100 * (row["held_out_accuracy"] - by_seed[row["seed"]]) for row in rows if row["seed"] in by_seed]
    return f"{statistics.mean(gaps):+.1f}" if gaps else ""


def ideas(record: dict[str, Any], names: tuple[str, ...] | None = None, base: str = "base") -> str:
    """One row per idea, with its distance from `base`."""
    found = by_idea(record["rows"])
    setting = record.get("setting", {"record": "ideas"})
    script = "python results/scripts/ideas.py" + (f" --setting {setting['name']}" if "name" in setting else "")
    rows = [
        {
            "idea": name,
            "what for": group[0]["claim"],
            "held-out accuracy, % (seeds)": spread([row["held_out_accuracy"] for row in group]),
            f"against {base}": effect(group, found.get(base, [])),
            "parameters": f"{group[0]['num_params'] / 1e3:.0f}k",
            "MACs": f"{group[0]['macs'] / 1e6:.1f}M",
        }
        for name, group in found.items()
        if names is None or name in names
    ]
    return f"{table(rows)}\n\n{link(setting['record'], script)}" if rows else ""


def prototypes(record: dict[str, Any]) -> str:
    rows = [
        {
            "idea": name,
            "held-out accuracy, % (seeds)": spread([row["held_out_accuracy"] for row in group]),
            "parameters": f"{group[0]['num_params'] / 1e3:.0f}k",
            "MACs of residual": f"{group[0]['macs_of_residual']:.2f}",
        }
        for name, group in by_idea(record["rows"]).items()
    ]
    source = "Record: [results/ideas-prototypes.json](../results/ideas-prototypes.json)."
    return f"{table(rows)}\n\n{record['note']}\n\n{source}"


def tuned(record: dict[str, Any]) -> str:
    setting = record["setting"]
    recipe = setting.get("recipe")
    name, flags = (f"rivals-tuned-{recipe}", f" --recipe {recipe}") if recipe else ("rivals-tuned", "")
    held_out = round(setting["limit"] * setting["held_out"])
    rows = [
        {
            "method": row["method"],
            "learning rate": f"{row['lr']:g}",
            "its own knob": ", ".join(f"{name} {value:g}" for name, value in row["options"].items()),
            "held-out accuracy, %": "diverged" if row["diverged"] else f"{100 * row['held_out_accuracy']:.1f}",
        }
        for row in record["rows"]
    ]
    said = (
        f"Depth {setting['depth']}, {setting['image_size']} px, {setting['epochs']} epochs on "
        f"{setting['limit'] - held_out:,} images, scored on {held_out:,} held-out training images, one seed."
    )
    return f"{said}\n\n{table(rows)}\n\n{link(name, f'python results/scripts/tune_rivals.py{flags}')}"


def curvature(record: dict[str, Any]) -> str:
    rows = [
        {
            "method": row["method"],
            "largest curvature": f"{row['curvature']:.0f}",
            "largest stable rate of SGD": f"{row['largest_rate']:.4f}",
        }
        for row in record["rows"]
    ]
    return f"{table(rows)}\n\n{link('curvature', 'python results/scripts/curvature.py')}"


def _not_sgd(record: dict[str, Any]) -> bool:
    return record["settings"]["recipe"]["optimizer"]["type"] != "SGD"


def _size(named: tuple[str, dict[str, Any]]) -> tuple[int, int, bool]:
    """Small images before large ones, few before many, SGD before others."""
    data = named[1]["data"]
    return data["image_size"], data["num_train"], _not_sgd(named[1])


def comparisons() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """The records of `pnnh compare` on CIFAR-10 with convolutional nets, by setting, in the order of `_size`."""
    found = []
    for path in sorted((ROOT / "results").glob("*.json")):
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or not {"summary", "settings", "data"} <= record.keys():
            continue
        if record["data"]["name"].startswith(("cifar10", "folder:cifar10")) and "patch" not in record["settings"]:
            found.append((path.stem, record))
    settings: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, record in sorted(found, key=_size):
        data, recipe = record["data"], record["settings"]["recipe"]
        setting = f"{data['image_size']} px, {data['num_train']:,} images, {recipe['epochs']} epochs"
        setting += f", {recipe['optimizer']['type']}" if _not_sgd(record) else ""
        settings.setdefault(setting, []).append((name, record))
    return settings


def pooled(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all `records`, a net that several of them have once. Raises ValueError if they differ on it."""
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for row in (row for record in records for row in record["rows"]):
        cell = row["method"], row["depth"], row["seed"]
        if rows.setdefault(cell, row)["test_accuracy"] != row["test_accuracy"]:
            raise ValueError(
                f"{cell} has {rows[cell]['test_accuracy']} in one record, {row['test_accuracy']} in another"
            )
    return list(rows.values())


def reached(row: dict[str, Any]) -> str:
    """The accuracy in a summary row."""
    if row["test_%"] is None:
        return "diverged"
    return f"{row['test_%']:.1f}" + (f" +- {row['std']:.1f}" if row["std"] is not None else "") + f" ({row['n']})"


def together(named: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The summary of the rows of all these records."""
    return summary(pooled([record for _, record in named]))


def picture(setting: str) -> str:
    """The file of a setting's figure, beside the page."""
    return f"figures/training-{re.sub(r'[^0-9a-z]+', '-', setting.replace(',', '').lower())}.svg"


def depths() -> str:
    """Per setting a figure and a table: the rows of all its records, depth by depth, the best first."""
    parts = []
    for setting, named in comparisons().items():
        rows = [
            {
                "depth": row["depth"],
                "method": row["method"],
                **({"learning rate": f"{row['lr']:g}"} if "lr" in row else {}),
                "test accuracy, % (seeds)": reached(row),
                "parameters": f"{row['params'] / 1e3:.0f}k",
                "MACs": f"{row['macs'] / 1e6:.1f}M",
            }
            for row in sorted(together(named), key=lambda row: (row["depth"], -(row["test_%"] or 0)))
        ]
        sources = "\n".join(f"- {link(name, record['command'])}" for name, record in named)
        shown = f"![Accuracy against depth and parameters, {setting}]({picture(setting)})"
        parts.append(f"**{setting}.**\n\n{shown}\n\n{table(rows)}\n\n{sources}")
    return "\n\n".join(parts)


def shapes(record: dict[str, Any]) -> str:
    rows = [
        {
            "net": row["net"],
            "parameters": f"{row['num_params'] / 1e6:.2f}M",
            "of the residual twin": f"{row['params_ratio']:.2f}",
            "MACs at 224 px": f"{row['macs'] / 1e9:.2f}G",
            "of the twin's": f"{row['macs_ratio']:.2f}",
        }
        for row in record["costs"]
    ]
    text = table(rows)
    if record["runs"]:
        setting = record["setting"]
        runs = [
            {"net": row["net"], "loss": f"{row['loss']:.3f}", "test accuracy, %": f"{100 * row['test_accuracy']:.1f}"}
            for row in record["runs"]
        ]
        text += (
            "\n\nA short run shows that they train from a folder of images, not how well: "
            f"{setting['num_train']:,} images at {setting['image_size']} px, {setting['epochs']} epochs, "
            f"SGD {setting['lr']:g}, one seed.\n\n{table(runs)}"
        )
    return f"{text}\n\n{link('imagenet-shapes', 'python results/scripts/imagenet_shapes.py')}"


BODIES = {
    "ideas-prototypes": of("ideas-prototypes", prototypes),
    "ideas": of("ideas", ideas),
    "ideas-current": of("ideas-current", partial(ideas, base="default")),
    "ablation": of("ideas-current", partial(ideas, names=ABLATION, base="default")),
    "ideas-default": of("ideas-default", partial(ideas, base="default")),
    "ideas-larger": of("ideas-larger", partial(ideas, base="default")),
    "ideas-longer": of("ideas-longer", partial(ideas, base="lr 0.3")),
    "ideas-current-longer": of("ideas-current-longer", partial(ideas, base="default")),
    "ideas-shallower": of("ideas-shallower", partial(ideas, base="lr 0.3")),
    "ideas-deeper": of("ideas-deeper", partial(ideas, base="lr 0.3")),
    "rivals-tuned": of("rivals-tuned", tuned),
    "rivals-tuned-muon": of("rivals-tuned-muon", tuned),
    "curvature": of("curvature", curvature),
    "depth": depths,
    "imagenet-shapes": of("imagenet-shapes", shapes),
}


def rendered(page: str) -> str:
    """`page` with every marked section written anew."""

    def section(match: re.Match) -> str:
        return f"{match[1]}\n{BODIES[match[2]]() or 'Not measured yet.'}\n\n{match[3]}"

    return SECTION.sub(section, page)


def main() -> None:
    write_text(PAGE, rendered(PAGE.read_text()))
    for setting, named in comparisons().items():
        write_text(PAGE.parent / picture(setting), accuracy(together(named)))


if __name__ == "__main__":
    main()
