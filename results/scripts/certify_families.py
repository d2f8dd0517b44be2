"""Certify one model of every timm family (architecture module), and ours: results/certify_families.json.

    python results/scripts/certify_families.py [--only ours | resnet vit ...]

Each model is built without weights on the meta device where its constructor allows it; the smallest variant of a
family (by name, then by build) stands for it. A family that cannot be traced is recorded with the reason. With `--only`
the named families are certified again and the other rows of the record are kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path

import timm
import torch

import pnnh.models  # noqa: F401
from pnnh.certify import certify
from pnnh.provenance import environment

OUT = Path(__file__).parents[1]
NAMED = ["vgg16_bn", "repvgg_a0", "resnet18", "resnet50", "densenet121", "mobilenetv2_100", "vit_tiny_patch16_224"]
SIZES = ("pico", "femto", "atto", "nano", "tiny", "xxs", "xs", "small", "mini", "s0", "b0", "t0", "18", "11", "_s")
FUSED = "repvgg_a0 (fused)"
EXPECTED = {"vgg16_bn": 0, "repvgg_a0": 0, FUSED: 0, "resnet18": 8, "resnet50": 16}
FULL_SIZE = [f"{family}_resnet56" for family in ("pnnh", "plain", "cifar")] + ["pnnh_resnet18", "pnnh_resnet50"]


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
    row = {"family": "byobnet", "model": FUSED, "plain": found.plain, "joins": len(found.joins)}
    row |= {"gates": len(found.gates), "activations": found.num_activations, "traced_by": found.traced_by}
    return {**row, "seconds": None, "note": ""}


def ours() -> list[tuple[str, str]]:
    """The smallest of each of our families, and some at full size."""
    names = [name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("pnnh.")]
    return [("pnnh", name) for name in names if name.endswith("_tiny") or "_test" in name or name in FULL_SIZE]


def todo(only: list[str] | None) -> list[tuple[str, str]]:
    """(family, model) in the order of the record."""
    named = [(timm.models.model_entrypoint(name).__module__.split(".")[-1], name) for name in NAMED]
    rest = [item for item in families().items() if item[1] not in NAMED and not item[0].startswith("pnnh")]
    every = [*named, ("byobnet", FUSED), *rest, *ours()]
    return every if only is None else [(f, name) for f, name in every if f in only or (f == "pnnh" and "ours" in only)]


def check(rows: list[dict]) -> None:
    """What must hold of some of them, whatever the rest is."""
    for row in rows:
        wanted = EXPECTED.get(row["model"])
        assert wanted is None or row["joins"] == wanted, row
        if row["model"].startswith(("pnnh_", "plain_", "cifar_resnet")):
            assert row["plain"] is not row["model"].startswith("cifar_resnet"), row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="timm module names, or ours")
    only = parser.parse_args().only
    target = OUT / "certify_families.json"
    kept = json.loads(target.read_text())["rows"] if only is not None else []
    done = []
    for family, name in todo(only):
        done.append(fused_repvgg() if name == FUSED else examine(family, name))
        print(json.dumps(done[-1]), flush=True)
        gc.collect()
    again = {row["model"] for row in done}
    rows = [row for row in kept if row["model"] not in again] + done
    check(rows)
    traced = [row for row in rows if row["plain"] is not None]
    record = environment() | {"command": "python results/scripts/certify_families.py"}
    record |= {"certified": len(traced), "plain": sum(row["plain"] for row in traced), "rows": rows}
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
