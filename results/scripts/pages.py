"""Write docs/records/*.md: every record in results/ as tables. No number on those pages is typed.

    python results/scripts/pages.py

PAGES names each page's records in order; a record that does not exist (yet) is left out, a page without any as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pnnh.report import bench_reading, markdown, of_work, write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGES_AT = ROOT / "results", ROOT / "docs" / "records"
MARK = "<!-- written by results/scripts/pages.py: do not edit -->"
WORKS = ("train", "infer", "latency")
SHOWN_KINDS = 7  # kinds of operators shown of a roofline
Record = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """A page of records: its file's name, its title, a sentence on what the records are, their names or patterns."""

    name: str
    title: str
    lead: str
    records: tuple[str, ...]


PAGES = (
    Page(
        "comparisons",
        "Records: comparisons",
        "Nets trained side by side by `pnnh compare`; test accuracy after the last epoch. See "
        "[Training deep plain nets](../training-deep-plain-nets.md).",
        ("cifar*", "imagenette*", "digits*", "bf16*", "tuned*"),
    ),
    Page(
        "dissipation",
        "Records: dissipation",
        "What is left of the input by depth. See [Seeing inputs dissipate](../seeing-inputs-dissipate.md).",
        ("dissipation*", "diagnose_cost", "diagnose_families"),
    ),
    Page(
        "theory",
        "Records: theory beside measurement",
        "Formulas of `pnnh.theory` against nets at initialisation. See [Theory](../theory.md).",
        ("theory_check",),
    ),
    Page(
        "conversion",
        "Records: fusing and converting",
        "The exact conversions: their cost and their error. See [Deploying a plain net](../deploying-a-plain-net.md).",
        ("fuse_forms", "convert_models", "imagenet-shapes"),
    ),
    Page(
        "families",
        "Records: which families are plain",
        "One small model of every timm family, and ours. See [Is my network plain?](../is-my-network-plain.md). The "
        "family that is not certified runs a recurrent operator, whose inside no graph shows.",
        ("certify_families",),
    ),
    Page(
        "speed",
        "Records: speed and memory",
        "Times are ratios to the first model of a table: above 1 is slower. See "
        "[Measuring speed and memory](../benchmarking.md).",
        ("step-account", "step-time-56", "bench-*", "clock-noise"),
    ),
    Page(
        "several-processes",
        "Records: several processes",
        "Training on two processes, stopped and continued. See [From a laptop to several nodes](../scaling.md).",
        ("scaling",),
    ),
)


def picked(row: Record, **columns: str) -> Record:
    """The named entries of `row`, under other names."""
    return {shown: row[key] for key, shown in columns.items() if key in row}


def compared(record: Record) -> str:
    """A comparison: its setting, its table and, if there is one, its note."""
    data, recipe = record["data"], record["settings"]["recipe"]
    setting = (
        f"{data['name']} (sha256 {data['sha256'][:12]}): {data['num_train']:,} images of {data['image_size']} px to "
        f"train, {data['num_test']:,} to test; {recipe['epochs']} epochs of {recipe['optimizer']['type']}, batch "
        f"{recipe['batch_size']}."
    )
    rows = [{key: value for key, value in row.items() if key not in ("img/s", "step_ms")} for row in record["summary"]]
    return "\n\n".join([setting, markdown(rows), *([record["note"]] if "note" in record else [])])


def timed(record: Record) -> str:
    """A benchmark: for every setting what is claimed, the times, and the largest kinds of operators."""
    parts = []
    for cell in record["cells"]:
        rows = [*cell["rows"], cell["control"]]
        claims = "\n".join(f"- {line}" for line in bench_reading(cell))
        times = [{"work": work} | of_work(row, work) for work in WORKS for row in rows]
        parts += [f"### {cell['title']}", claims, markdown(times)]
        for model, kinds in cell.get("rooflines", {}).items():
            parts += [f"{model}, one training step:", markdown([*kinds[:SHOWN_KINDS], kinds[-1]])]
    return "\n\n".join(parts)


def counted(record: Record) -> str:
    """The account of a training step: totals, their ratios to the first net, the gigabytes by kind of operator."""
    nets = [row["model"] for row in record["totals"]]
    cells = {(row["phase"], row["kind"], row["model"]): row["gigabytes"] for row in record["rows"]}
    kinds = sorted({(phase, kind) for phase, kind, _ in cells})
    moved = [
        {"GB moved": f"{phase} {kind}"} | {net: round(cells.get((phase, kind, net), 0.0), 3) for net in nets}
        for phase, kind in kinds
    ]
    moved = [row for row in moved if max(row[net] for net in nets) >= 0.005]
    lead = f"{record['batch_size']} images of 3x32x32, one training step; then ratios to {nets[0]}."
    return "\n\n".join([lead, markdown(record["totals"]), markdown(record["ratios"]), markdown(moved)])


def fused(record: Record) -> str:
    """The two fused forms, the largest error of the seeds."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in record["rows"]:
        groups.setdefault((row["model"], row["form"]), []).append(row)
    rows = [
        {
            "net": name,
            "form": form,
            "parameters": f"{group[0]['parameters_before'] / 1e6:.2f}M -> {group[0]['parameters_after'] / 1e6:.2f}M",
            "MMAC": f"{group[0]['macs_before'] / 1e6:.1f} -> {group[0]['macs_after'] / 1e6:.1f}",
            "float64 error": f"{max(row['relative_error'] for row in group):.1e}",
            "float32 ratio": f"{max(row['rounding_ratio'] for row in group):.2f}",
        }
        for (name, form), group in groups.items()
    ]
    note = "float32 ratio: rounding error of the fused net over the unfused one's. The largest of "
    return f"{markdown(rows)}\n\n{note}{record['seeds']} seeds."


def converted(record: Record) -> str:
    """Residual nets as plain ones: cost before and after, and the error of the twin that was built."""

    def row(found: Record) -> Record:
        if "refused" in found:
            return {"model": found["model"], "form": found["form"], "error, float64": f"refused: {found['refused']}"}
        before, after = found["before"], found["predicted"]
        built = "joins" in found
        error = f"{found['relative_error_float64']:.1e}" if built else "not built"
        return {
            "model": found["model"],
            "form": found["form"],
            "error, float64": error,
            "shortcuts": found.get("joins"),
            "parameters": f"{before['num_params'] / 1e6:.1f}M -> {after['num_params'] / 1e6:.1f}M",
            "GMAC": f"{before['macs'] / 1e9:.2f} -> {after['macs'] / 1e9:.2f}",
            "activations, MB": f"{before['activation_bytes'] / 1e6:.1f} -> {after['activation_bytes'] / 1e6:.1f}",
            "as predicted": found["prediction_holds"] if built else None,
        }

    note = (
        f"Error: the largest over 2 images and noise, at {record['size']} pixels, with random norm statistics. Cost of "
        "one image of 224 pixels (32 for Transformers). As predicted: the twin's measured cost is that of the dry run."
    )
    return f"{markdown([row(found) for found in record['rows']])}\n\n{note}"


def shapes(record: Record) -> str:
    rows = [
        picked(row, net="net", num_params="parameters", params_ratio="of the residual net's")
        | picked(row, macs="MACs at 224 px", macs_ratio="of the residual net's MACs")
        for row in record["costs"]
    ]
    return f"{markdown(rows)}\n\nNone of these nets was trained on ImageNet."


def certified(record: Record) -> str:
    answer = {True: "yes", False: "no", None: "refused"}
    rows = [
        {"family": row["family"], "model": row["model"], "plain": answer[row["plain"]]}
        | picked(row, joins="breaking joins", gates="gates", activations="activations", note="first break, or refusal")
        for row in record["rows"]
    ]
    lead = f"{record['certified']} of {len(rows)} models certified, {record['plain']} of them plain."
    return f"{lead}\n\n{markdown(rows)}"


def diagnosed(record: Record) -> str:
    rows = [
        picked(row, family="family", model="model", ok="diagnosed", image_size="pixels", activations="activations")
        | picked(row, r2_first="R² first", r2_last="R² last", note="note")
        for row in record["rows"]
    ]
    lead = f"{record['diagnosed']} of {record['examined']} families diagnosed, random weights, small images."
    return f"{lead}\n\n{markdown(rows)}"


def diagnosis_cost(record: Record) -> str:
    return (
        f"{record['model']}, {record['images']} images of {record['image_size']} px, {record['threads']} threads: "
        f"{record['diagnosis_seconds']:.0f} s for {record['activations']} activations, {record['forward_passes']:.1f} "
        f"forward passes of all images; {record['peak_mb'] / 1000:.1f} GB at the peak."
    )


def dissipated(record: Record) -> str:
    """What is left of the input and of the gradient; a range is the least and the greatest of the seeds."""

    def row(name: str, net: Record) -> Record:
        layers, growths = net["rows"], net["gradient_growth"]
        places = {"after 5": layers[4], "at 1/3": layers[len(layers) // 3 - 1], "at the end": layers[-1]}
        gone = {"half gone from": "below_0.5", "95 % gone from": "below_0.05", "R² noise from": "r2_depth"}
        gone |= {"SSIM noise from": "ssim_depth", "CKA noise from": "cka_depth"}
        return {
            "net (activations)": f"{name} ({len(layers)})",
            **{f"R² {place}": f"{layer['r2']:.2f} ± {layer['r2_std']:.2f}" for place, layer in places.items()},
            **{title: _range(net[key]) for title, key in gone.items()},
            "gradient, first over last": math.exp(sum(map(math.log, growths)) / len(growths)),
        }

    table = markdown([row(name, net) for name, net in record["nets"].items()])
    return f"{table}\n\nSeeds {', '.join(map(str, record['seeds']))}. Numbers of activations, in order of execution."


def _range(depths: list[int | None]) -> str:
    ends = sorted(math.inf if depth is None else depth for depth in depths)
    words = ["never" if end == math.inf else str(end) for end in (ends[0], ends[-1])]
    return words[0] if words[0] == words[1] else " to ".join(words)


def theoretical(record: Record) -> str:
    nets = [
        {
            "plain, He-normal, 24 layers": name,
            "layers": found["layers"],
            "within 3 standard errors": found["agree"],
            "measures beyond 3": len(found["beyond_3"]),
            "expected by chance": found["expected_by_chance"],
            "seeds pooled: within 3": f"{found['pooled_agree']} of {found['pooled_layers']}",
            "bound violated": found["bound_violations"],
        }
        for name, found in ((name, record[name]) for name in ("mlp", "cnn"))
    ]
    chains = [
        {
            "conv-BN-ReLU, 56 layers": name,
            "shift": found["shift"],
            "growth a layer, theory": f"{found['theory_each']:.4f}",
            "measured": f"{found['each_mean']:.4f} ± {found['each_std']:.4f}",
            "over all layers": ", ".join(f"{value:.3g}" for value in found["total"]),
            "target": math.exp(0.5) if name.startswith("solved") else found["theory_each"] ** 55,
        }
        for name, found in record.items()
        if name.startswith(("unshifted", "solved"))
    ]
    return f"{markdown(nets)}\n\n{markdown(chains)}"


def scaled(record: Record) -> str:
    rows = [
        {"run": row["name"], "exit code": row["exit_code"], "seconds to stop": row.get("seconds_to_stop")}
        | {"loss by epoch": ", ".join(f"{loss:.4f}" for loss in row.get("losses", ()))}
        for row in record["rows"]
    ]
    return markdown(rows)


BODIES: dict[str, Callable[[Record], str]] = {
    "theory_check": theoretical,
    "fuse_forms": fused,
    "convert_models": converted,
    "imagenet-shapes": shapes,
    "certify_families": certified,
    "diagnose_families": diagnosed,
    "diagnose_cost": diagnosis_cost,
    "step-account": counted,
    "scaling": scaled,
}


def body(name: str, record: Record) -> str:
    """The tables of a record, by its name or by its shape."""
    if name in BODIES:
        return BODIES[name](record)
    for key, render in (("summary", compared), ("cells", timed), ("nets", dissipated)):
        if key in record:
            return render(record)
    return markdown(record["rows"])


def source(name: str, record: Record) -> str:
    """Where the numbers come from: command, code, versions, device, day."""
    found = record.get("evidence", record)
    device = found["device"]
    machine = device if isinstance(device, str) else f"{device['name']}, {device.get('threads', '?')} thread(s)"
    code, torch = found.get("code_version", found.get("code")), found["versions"]["torch"]
    return (
        f"Record: [results/{name}.json](../../results/{name}.json), from `{found['command']}`; code {code}, "
        f"torch {torch}, {machine}, {found['date'][:10]}."
    )


def records(page: Page) -> Iterator[tuple[str, Record]]:
    files = [file for pattern in page.records for file in sorted(RESULTS.glob(f"{pattern}.json"))]
    for file in dict.fromkeys(files):
        yield file.stem, json.loads(file.read_text())


def rendered(page: Page) -> str:
    """The page's text; empty without records."""
    sections = [f"## {name}\n\n{body(name, record)}\n\n{source(name, record)}" for name, record in records(page)]
    return "\n\n".join([f"# {page.title}", MARK, page.lead, *sections]) + "\n" if sections else ""


def main() -> None:
    for page in PAGES:
        if text := rendered(page):
            write_text(PAGES_AT / f"{page.name}.md", text)


if __name__ == "__main__":
    main()
