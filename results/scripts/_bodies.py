"""The tables of each record, as Markdown: by the record's name, or by its shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pnnh.report import bench_reading, markdown, of_work

WORKS = ("train", "infer", "latency")
SHOWN_KINDS = 7  # kinds of operators shown of a roofline
ENVIRONMENT = ("command", "date", "code_version")
Record = dict[str, Any]


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


def pictured(record: Record) -> str:
    """R² of one image read back at the end of each part of a net."""
    rows = [
        {"net": row["method"], "state": state, "layers": row["depth"]}
        | {f"{part}/{len(view['r2'])}": r2 for part, r2 in enumerate(view["r2"], 1)}
        for row in record["rows"]
        for state, view in row["views"].items()
    ]
    return f"R² of what is read back at the end of each part of a net.\n\n{markdown(rows)}"


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
    "picture": pictured,
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
    if record.get("rows"):
        return markdown(record["rows"])
    facts = {key: len(value) if isinstance(value, list) else value for key, value in record.items()}
    named = {key: value for key, value in facts.items() if isinstance(value, (int, str)) and key not in ENVIRONMENT}
    return markdown([{"entry": key.replace("_", " "), "value": value} for key, value in named.items()])
