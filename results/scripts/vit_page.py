"""The record of the Transformers' comparison, and the results in docs/plain-vision-transformers.md: no number is typed.

    python results/scripts/vit_page.py --rows runs/vit    # collect the rows of `pnnh compare --family vit`
    python results/scripts/vit_page.py                    # write the page's sections from the records

Rows whose settings are not those of runs/vit/results.json are left out and named. Between `<!-- record NAME -->` and
`<!-- end NAME -->` of the page stands what results/NAME.json says; a record that does not exist leaves its section
empty.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tyro

from pnnh.recipes import Cell, TransformerComparison, summary
from pnnh.report import json_text, write_text
from pnnh.report.comparison import comparison_page, reading
from pnnh.report.table import show
from pnnh.train import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE, CURVES = ROOT / "docs" / "plain-vision-transformers.md", ROOT / "docs" / "figures" / "vit-curves.svg"
SECTION = re.compile(r"(<!-- record (\S+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def collect(folder: Path) -> dict[str, Any]:
    """All finished rows in `folder` that share the settings of its results.json, and their summary."""
    results = json.loads((folder / "results.json").read_text())
    settings = dict(results["settings"])
    settings.pop("family")
    plan = TransformerComparison(**settings | {"recipe": Recipe.from_dict(settings["recipe"])})
    rows = []
    for file in sorted((folder / "rows").glob("*.json")):
        row = json.loads(file.read_text())
        if row["key"] == plan.key(Cell(row["method"], row["depth"], row["seed"])):
            rows.append(row)
        else:
            print(f"{file.name} is of other settings: left out")
    return results | {"rows": rows, "summary": summary(rows), "command": "; ".join(commands(plan, rows))}


def commands(plan: TransformerComparison, rows: list[dict[str, Any]]) -> list[str]:
    """The fewest `pnnh compare` that train these rows: one for all methods that share depth and seeds."""
    seeds: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        seeds.setdefault((row["depth"], row["method"]), []).append(row["seed"])
    jobs: dict[tuple[int, str], list[str]] = {}
    for (depth, method), numbers in sorted(seeds.items()):
        jobs.setdefault((depth, ",".join(map(str, sorted(numbers)))), []).append(method)
    base = f"pnnh compare --family vit --data {plan.data} --width {plan.width} --patch {plan.patch}"
    base += f" --image-size {plan.image_size}" if plan.image_size else ""
    base += f" --limit {plan.limit}" if plan.limit else ""
    base += f" --epochs {plan.recipe.epochs} --batch-size {plan.recipe.batch_size}"
    base += "" if plan.own_lr else f" --lr {plan.recipe.optimizer.lr:g}"
    return [f"{base} --depths {d} --seeds {s} --methods {','.join(methods)}" for (d, s), methods in jobs.items()]


def table(rows: list[dict[str, Any]]) -> str:
    head = " | ".join(key.replace("_", " ") for key in rows[0])
    lines = [f"| {head} |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + [f"| {' | '.join(show(value) for value in row.values())} |" for row in rows])


def compared(record: dict[str, Any]) -> str:
    data, settings = record["data"], record["settings"]
    recipe = settings["recipe"]
    setting = (
        f"{data['name']} at {data['image_size']} pixels, patches of {settings['patch']}, width {settings['width']}: "
        f"{data['num_train']:,} images to train, {data['num_test']:,} to test, {recipe['epochs']} epochs, batch "
        f"{recipe['batch_size']}, {recipe['optimizer']['type']} at {recipe['optimizer']['lr']:g}."
    )
    said = "\n".join(f"- {line}" for line in reading(record["summary"]))
    curves = "![Test accuracy after each epoch](figures/vit-curves.svg)"
    rows = [{key: value for key, value in row.items() if key != "img/s"} for row in record["summary"]]  # not paired
    return f"{setting}\n\n{table(rows)}\n\n{said}\n\n{curves}"


def ablated(record: dict[str, Any]) -> str:
    settings = record["settings"]
    full = next(row["test_%"] for row in record["rows"] if row["variant"] == "all ingredients")
    rows = [
        {"variant": row["variant"], "parameters": row["parameters"], "test %": row["test_%"]}
        | {"difference": f"{row['test_%'] - full:+.1f}"}
        for row in record["rows"]
    ]
    setting = f"Depth {settings['depth']}, {settings['limit']:,} training images, {settings['epochs']} epochs"
    return f"{setting}, one seed: differences of a point are noise.\n\n{table(rows)}"


def tuned(record: dict[str, Any]) -> str:
    """Methods in rows, learning rates in columns; the best of each method is bold."""
    found = {(row["method"], row["lr"]): row["held_out_%"] for row in record["rows"]}
    rates = sorted({lr for _, lr in found})
    rows = []
    for method in dict.fromkeys(method for method, _ in found):
        best = max(found[method, lr] for lr in rates)
        shown = {lr: f"{found[method, lr]:.1f}" for lr in rates}
        rows.append(
            {"method": method} | {f"{lr:g}": f"**{v}**" if found[method, lr] == best else v for lr, v in shown.items()}
        )
    settings = record["settings"]
    setting = (
        f"Accuracy in % on the {100 * settings['holdout']:g} % of {settings['limit']:,} training images that were held "
        f"out, depth 12, {settings['recipe']['epochs']} epochs, one seed, by learning rate."
    )
    return f"{setting}\n\n{table(rows)}"


def conditioned(record: dict[str, Any]) -> str:
    """The last block of every net."""
    names = ("attention_rank", "own_share", "r2", "effective_rank")
    rows = []
    for net in record["nets"]:
        first, last = net["blocks"][0], net["blocks"][-1]
        growth = first["gradient"] / last["gradient"] if last["gradient"] else None
        rows.append({name: net[name] for name in ("state", "method", "depth", "seed")})
        rows[-1] |= {name: float(last[name]) for name in names if last[name] is not None}
        rows[-1] |= {"gradient, first / last": growth}
    return f"At the last block:\n\n{table(rows)}\n\n![Measures by block](figures/vit-conditioning.svg)"


BODIES = {"vit-cifar10": compared, "vit-tuned": tuned, "vit-ablation": ablated, "vit-conditioning": conditioned}


def section(name: str) -> str:
    path = ROOT / "results" / f"{name}.json"
    if not path.is_file():
        return ""
    record = json.loads(path.read_text())
    device, versions = record["device"], record["versions"]
    source = f"{device['name']}, {device['threads']} thread(s), torch {versions['torch']}, {record['date'][:10]}"
    link = f"[results/{name}.json](../results/{name}.json)"
    return f"\n{BODIES[name](record)}\n\n{source}. Record: {link}, from `{record['command']}`.\n\n"


def rendered(page: str) -> str:
    """`page` with every marked section written anew."""
    return SECTION.sub(lambda match: match[1] + section(match[2]) + match[3], page)


def main(rows: Path | None = None) -> None:
    if rows is not None:
        write_text(ROOT / "results" / "vit-cifar10.json", json_text(collect(rows)))
    path = ROOT / "results" / "vit-cifar10.json"
    if path.is_file():
        (curves,) = (s for s in comparison_page(json.loads(path.read_text())).sections if s.title == "Training curves")
        write_text(CURVES, curves.svgs[0])
    write_text(PAGE, rendered(PAGE.read_text()))


if __name__ == "__main__":
    tyro.cli(main)
