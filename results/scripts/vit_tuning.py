"""The Transformers' learning rates, on held-out training images: the same three rates and budget for all methods.

pnnh compare --family vit --data cifar10 --image-size 16 --limit 6000 --holdout 0.15 --epochs 3 --depths 12
    --methods residual,plain,pnnh,skip_init --lr 0.001 --out runs/vit-tuning/0.001     (also 0.0003, 0.003)
python results/scripts/vit_tuning.py
"""

from __future__ import annotations

import json
from pathlib import Path

import tyro

from pnnh import provenance
from pnnh.report import json_text, write_text


def main(folder: Path = Path("runs/vit-tuning"), out: Path = Path("results/vit-tuned.json")) -> None:
    found, settings = [], None
    for results in sorted(folder.glob("*/results.json")):
        settings = json.loads(results.read_text())["settings"]
        for file in sorted((results.parent / "rows").glob("*.json")):
            row = json.loads(file.read_text())
            curve = [round(100 * epoch["test_accuracy"], 2) for epoch in row["curve"]]
            reached = None if row.get("diverged") else curve[-1]
            found.append({"method": row["method"], "lr": row["lr"], "held_out_%": reached, "curve_%": curve})
    if settings is None:
        raise SystemExit(f"no {folder}/*/results.json: run the commands at the top of this file first")
    found.sort(key=lambda row: (row["method"], row["lr"]))
    settings["recipe"].pop("optimizer")
    write_text(out, json_text({"settings": settings, "rows": found} | provenance.environment("cpu")))
    for row in found:
        reached = "diverged" if row["held_out_%"] is None else f"{row['held_out_%']:6.2f} %"
        print(f"{row['method']:10} lr {row['lr']:<7g} held-out {reached}")


if __name__ == "__main__":
    tyro.cli(main)
