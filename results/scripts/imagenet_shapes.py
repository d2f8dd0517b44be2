"""The ImageNet-shaped nets beside timm's: what they cost, and one short run on a folder of images at 64 px.

    python results/scripts/imagenet_shapes.py             writes results/imagenet-shapes.json
    python results/scripts/imagenet_shapes.py --no-train  the costs only; the runs of the record stay

The run is short on purpose: 1,000 CIFAR-10 images (JPEG files in class folders) enlarged to 64 px, 2 epochs. It shows
that the nets train from a folder with the stock recipe; its accuracies rank nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from _evidence import evidence

import pnnh.models
from pnnh._cost import cost
from pnnh.train import load_data, recipe_for, train
from pnnh.train.data import cache_dir

PLACE = Path(__file__).resolve().parents[1] / "imagenet-shapes.json"
DEPTHS = (18, 34, 50)
SIZE = (3, 224, 224)
RUN = {"image_size": 64, "num_train": 1000, "num_test": 500, "epochs": 2, "batch_size": 64, "lr": 0.1, "seed": 0}


def costs() -> list[dict[str, Any]]:
    """Parameters and multiply-accumulates at 224 px, and both as multiples of the residual twin's."""
    rows = []
    for depth in DEPTHS:
        with torch.device("meta"):
            nets = {
                name: timm.create_model(name) for name in (f"{kind}resnet{depth}" for kind in ("", "plain_", "pnnh_"))
            }
        counted = {name: cost(net, SIZE) for name, net in nets.items()}
        twin = counted[f"resnet{depth}"]
        for name, found in counted.items():
            row = {"net": name, "num_params": found.num_params, "macs": found.macs}
            row |= {"params_ratio": found.num_params / twin.num_params, "macs_ratio": found.macs / twin.macs}
            rows.append(row)
    return rows


def folder(source: Path, target: Path) -> Path:
    """A folder of links: the first images of every class in `source`, as many as the run needs."""
    for part, count in (("train", RUN["num_train"]), ("test", RUN["num_test"])):
        classes = sorted(entry for entry in (source / part).iterdir() if entry.is_dir())
        for place in classes:
            (target / part / place.name).mkdir(parents=True)
            for image in sorted(place.glob("*.jpg"))[: count // len(classes)]:
                (target / part / place.name / image.name).symlink_to(image)
    return target


def short_run(name: str, data) -> dict[str, Any]:
    torch.manual_seed(RUN["seed"])
    model = timm.create_model(name, num_classes=data.num_classes)
    recipe = recipe_for(data, epochs=RUN["epochs"], batch_size=RUN["batch_size"]).with_lr(RUN["lr"])
    for epoch in train(model, data, recipe, seed=RUN["seed"], device="cpu"):
        print(name, epoch, flush=True)
    row = {
        "net": name,
        "loss": epoch.loss,
        "train_accuracy": epoch.train_accuracy,
        "test_accuracy": epoch.test_accuracy,
    }
    return row | {"seed": RUN["seed"], "recipe": recipe.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", type=Path, default=cache_dir() / "cifar10", help="train/CLASS/*.jpg, test/CLASS/*.jpg"
    )
    parser.add_argument("--no-train", action="store_true")
    asked = parser.parse_args()
    assert pnnh.models  # registers the nets
    runs = json.loads(PLACE.read_text())["runs"] if PLACE.exists() else []
    if not asked.no_train:
        with tempfile.TemporaryDirectory() as place:
            data = load_data(f"folder:{folder(asked.source, Path(place))}", image_size=RUN["image_size"])
            runs = [short_run(name, data) for name in ("resnet18", "pnnh_resnet18", "plain_resnet18")]
    record = {"setting": RUN, "costs": costs(), "runs": runs, "evidence": evidence()}
    PLACE.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
