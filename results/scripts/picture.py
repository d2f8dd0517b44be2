"""The picture of dissipating inputs on the home page: docs/figures/dissipation.svg, from results/picture.json.

python results/scripts/picture.py                          # untrained nets of depth 56, one test digit
python results/scripts/picture.py --results runs/demo/results.json   # the nets of a comparison, trained as well
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch

import pnnh.models  # noqa: F401  registers the nets
from pnnh.analysis.readback import read_back
from pnnh.data import load_data
from pnnh.provenance import environment
from pnnh.report import json_text, write_text
from pnnh.report.picture import picture
from pnnh.train import Normalise

ROOT = Path(__file__).resolve().parents[2]
NETS = {"plain": "plain_resnet56", "residual": "cifar_resnet56", "pnnh": "pnnh_resnet56"}
KEPT = ("method", "depth", "seed", "test_accuracy", "views")


def untrained() -> dict:
    """Nets as they are built, seed 0, with the batch's statistics in their norms."""
    data, rows = load_data("digits"), []
    images = Normalise(data, "cpu")(data.test.images[:64])
    for method, name in NETS.items():
        torch.manual_seed(0)
        net = timm.create_model(name, in_chans=data.channels, num_classes=data.num_classes)
        views = {"untrained": read_back(net, images, training=True)}
        rows.append({"method": method, "depth": 56, "seed": 0, "test_accuracy": None, "views": views})
    return {"rows": rows} | environment(data=data.to_dict())


def of_comparison(results: dict) -> dict:
    """The same of a comparison's deepest nets, with its environment."""
    rows = [{key: row[key] for key in KEPT} for row in results["rows"] if row.get("views")]
    names = ("command", "date", "code_version", "versions", "device", "data")
    return {"rows": rows} | {name: results[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="results.json of `pnnh compare`")
    asked = parser.parse_args()
    record = untrained() if asked.results is None else of_comparison(json.loads(asked.results.read_text()))
    write_text(ROOT / "results" / "picture.json", json_text(record))
    nets = [(row["method"], row["depth"], row["test_accuracy"], row["views"]) for row in record["rows"]]
    write_text(ROOT / "docs" / "figures" / "dissipation.svg", picture(nets) + "\n")


if __name__ == "__main__":
    main()
