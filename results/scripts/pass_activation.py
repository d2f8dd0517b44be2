"""Is the activation that the stream crosses in a learn layer a real one? Measured on trained nets.

    python results/scripts/pass_activation.py runs/compare/models/pnnh-56-* --data digits --image-size 16

For every learn layer c' = relu(c + shift): the share of positive stream units that it sets to zero, and how much it
changes the stream, |c' - c| / |c| (Frobenius norms), on the test images in eval mode.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import torch
import tyro

from pnnh import layers, provenance
from pnnh.cli._model import load_model
from pnnh.report import json_text, write_text
from pnnh.train import Normalise, load_data


@torch.no_grad()
def measure(folder: Path, images: torch.Tensor) -> list[dict]:
    """One row per learn layer of the trained net in `folder`."""
    model, _ = load_model(str(folder))
    rows = []

    def look(path):
        def hook(module, inputs, outputs):
            before, after = inputs[-1], outputs[1]
            alive = before > 0
            clipped = ((after <= 0) & alive).sum() / alive.sum()
            change = (after - before).norm() / before.norm()
            rows.append({"layer": path, "clipped": clipped.item(), "relative_change": change.item()})

        return hook

    for path, module in model.named_modules():
        if isinstance(module, layers.Learn):
            module.register_forward_hook(look(path))
    model(images)
    return rows


def main(
    models: Annotated[tuple[Path, ...], tyro.conf.Positional],
    data: str = "digits",
    image_size: int | None = None,
    num_images: int = 256,
    out: Path = Path("results/pass-activation.json"),
) -> None:
    loaded = load_data(data, image_size=image_size)
    images = Normalise(loaded, "cpu")(loaded.test.images[:num_images])
    nets = [{"model": folder.name, "rows": measure(folder, images)} for folder in models]
    summary = {}
    for name in ("clipped", "relative_change"):
        means = [statistics.mean(row[name] for row in net["rows"]) for net in nets]
        spread = statistics.stdev(means) if len(means) > 1 else None
        largest = max(row[name] for net in nets for row in net["rows"])
        summary[name] = {"mean": statistics.mean(means), "std": spread, "n": len(means), "largest_layer": largest}
    result = {"data": loaded.to_dict(), "summary": summary, "nets": nets} | provenance.environment("cpu")
    write_text(out, json_text(result))
    print(json_text(summary))


if __name__ == "__main__":
    tyro.cli(main)
