"""Fusing by depth and form, with random norm statistics: results/fuse_forms.json, and its table in the docs.

    python results/scripts/fuse_forms.py [--seeds 3] [--size 32]

Per net and seed: float64 error of the fused net against its source, rounding of either in float32 against float64, and
the parameters and MACs of training form and fused form. The residual net is the measure of cost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch
from _norms import with_statistics

import pnnh.models  # noqa: F401
from pnnh.convert import fuse
from pnnh.provenance import environment

OUT = Path(__file__).parents[1]
RESIDUAL = "cifar_resnet56"
CASES = [(f"pnnh_resnet{depth}", form) for depth in (20, 56, 110) for form in ("chain", "structured")]
CASES += [("plain_resnet56", "chain"), ("cifar_repvgg56", "chain"), (RESIDUAL, "chain")]


def examine(name: str, form: str, seed: int, size: int) -> dict:
    torch.manual_seed(seed)
    model = with_statistics(timm.create_model(name), seed)
    fused = fuse(model, torch.randn(2, 3, size, size), form=form)
    facts = {key: value for key, value in vars(fused.fusion).items() if key not in ("folded", "form")}
    facts["rounding_ratio"] = fused.fusion.rounding_fused / fused.fusion.rounding_unfused
    return {"model": name, "form": form, "seed": seed} | facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = [examine(*case, seed, chosen.size) for case in CASES for seed in range(chosen.seeds)]
    worst = {"relative_error": max(row["relative_error"] for row in rows)}
    worst["rounding_ratio"] = max(row["rounding_ratio"] for row in rows)
    record = environment() | {"size": chosen.size, "seeds": chosen.seeds, "worst": worst, "rows": rows}
    (OUT / "fuse_forms.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
