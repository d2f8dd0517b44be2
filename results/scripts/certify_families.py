"""Certify one model of every timm family (architecture module), and ours: results/certify_families.json and .md.

    python results/scripts/certify_families.py [--only resnet vit ...]

Each model is built without weights on the meta device where its constructor allows it; the smallest variant of a
family (by name, then by build) stands for it. A family that cannot be traced is recorded with the reason.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch

from pnnh.certify import certify

OUT = Path(__file__).parents[1]
NAMED = ["vgg16_bn", "repvgg_a0", "resnet18", "resnet50", "densenet121", "mobilenetv2_100", "vit_tiny_patch16_224"]
SIZES = ("pico", "femto", "atto", "nano", "tiny", "xxs", "xs", "small", "mini", "s0", "b0", "t0", "18", "11", "_s")
EXPECTED = {"vgg16_bn": 0, "repvgg_a0": 0, "resnet18": 8, "resnet50": 16}


def families() -> dict[str, str]:
    """timm module -> one small model of it."""
    chosen = {}
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            chosen[module] = min(names, key=lambda name: (_rank(name), len(name), name))
    return chosen


def _rank(name: str) -> int:
    return next((index for index, size in enumerate(SIZES) if size in name), len(SIZES))


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    shape = (timm.get_pretrained_cfg(name) or timm.create_model(name).pretrained_cfg).input_size
    try:
        with torch.device("meta"):
            return timm.create_model(name).eval(), torch.zeros(2, *shape, device="meta")
    except Exception:  # a constructor that computes with values
        return timm.create_model(name).eval(), torch.zeros(2, *shape)


def examine(family: str, name: str) -> dict:
    row = {"family": family, "model": name, "plain": None, "joins": None, "gates": None, "activations": None}
    start = time.perf_counter()
    try:
        model, example = build(name)
        found = certify(model, example)
    except Exception as error:
        return {**row, "traced_by": "", "seconds": None, "note": str(error).splitlines()[0][:200]}
    row |= {"plain": found.plain, "joins": len(found.joins), "gates": len(found.gates)}
    row |= {"activations": found.num_activations, "traced_by": found.traced_by}
    return row | {
        "seconds": round(time.perf_counter() - start, 1),
        "note": found.rows()[0]["source"] if found.joins else "",
    }


def fused_repvgg() -> dict:
    from timm.utils.model import reparameterize_model

    model = reparameterize_model(timm.create_model("repvgg_a0").eval())
    found = certify(model, torch.zeros(2, 3, 224, 224))
    row = {"family": "byobnet", "model": "repvgg_a0 (fused)", "plain": found.plain, "joins": len(found.joins)}
    row |= {"gates": len(found.gates), "activations": found.num_activations, "traced_by": found.traced_by}
    return {**row, "seconds": None, "note": ""}


def ours() -> dict[str, str]:
    try:
        import pnnh.models  # noqa: F401
    except ModuleNotFoundError:
        return {}
    return {f"pnnh: {name}": name for name in timm.list_models("*pnnh*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None, help="timm module names")
    only = parser.parse_args().only
    todo = (
        [(timm.models.model_entrypoint(name).__module__.split(".")[-1], name) for name in NAMED] if only is None else []
    )
    todo += [item for item in families().items() if (only is None and item[1] not in NAMED) or item[0] in (only or ())]
    rows = []
    for family, name in [*todo, *ours().items()]:
        rows.append(examine(family, name))
        print(json.dumps(rows[-1]), flush=True)
        gc.collect()
    rows.insert(len(NAMED), fused_repvgg())
    for name, joins in EXPECTED.items():
        got = [row["joins"] for row in rows if row["model"] == name]
        assert not got or got == [joins], (name, got)
    traced = [row for row in rows if row["plain"] is not None]
    record = {
        "command": "python results/scripts/certify_families.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "pnnh": pnnh_version()},
        "families": len({row["family"] for row in rows}),
        "certified": len(traced),
        "plain": sum(row["plain"] for row in traced),
        "rows": rows,
    }
    (OUT / "certify_families.json").write_text(json.dumps(record, indent=1) + "\n")
    (OUT / "certify_families.md").write_text(markdown(record))


def pnnh_version() -> str:
    import subprocess

    from pnnh import __version__

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=OUT)
    return f"{__version__} ({commit.stdout.strip() or 'no commit'})"


def markdown(record: dict) -> str:
    lines = [
        "# Which timm families are plain",
        "",
        f"One model per family, {record['certified']} of {len(record['rows'])} certified, {record['plain']} plain. "
        f"Regenerate: `{record['command']}` ({record['date']}, torch {record['versions']['torch']}, "
        f"timm {record['versions']['timm']}).",
        "",
        "| family | model | plain | breaking joins | gates | activations | first break, or why not certified |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        cells = [row["family"], row["model"], {True: "yes", False: "no", None: "?"}[row["plain"]]]
        cells += [row["joins"], row["gates"], row["activations"], re.sub(r"[|`]", " ", row["note"])]
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
