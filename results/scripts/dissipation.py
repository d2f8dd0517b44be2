"""The phenomenon, measured: plain, residual and PNNH nets of depth 56, and a VGG-like net, at initialisation.

python results/scripts/dissipation.py                        # measure (some minutes on a core), then draw
python results/scripts/dissipation.py --draw                 # the figures of docs/ again from the record
python results/scripts/dissipation.py --weights FOLDER ...   # trained nets: checkpoint folders, in eval mode
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
RESULTS, FIGURES = HERE.parent, HERE.parent.parent / "docs" / "figures"
NAMES = {"plain_resnet56": "plain", "cifar_resnet56": "residual", "pnnh_resnet56": "PNNH"}


def vgg_like(width: int = 32) -> nn.Sequential:
    """The paper's case: 3 x 3 convolutions and ReLU, He-normal weights, no norm, 16 convolutions pooled as VGG-19."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (count, factor) in enumerate(((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))):
        for _ in range(count):
            conv = nn.Conv2d(channels, width * factor, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU()]
            channels = width * factor
        if stage < 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def images(count: int) -> torch.Tensor:
    """The first `count` CIFAR-10 test images of a fixed shuffle, normalised."""
    from pnnh.train.data import load_data

    data = load_data("cifar10")
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:count]
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (data.test.images[order].float() / 255 - mean) / std


def build(name: str, seed: int) -> nn.Module:
    import timm

    import pnnh.models  # noqa: F401

    torch.manual_seed(seed)
    return vgg_like() if name == "vgg-like" else timm.create_model(name)


def over_seeds(runs: list) -> list[dict]:
    """Rows of mean and standard deviation over the seeds, layer by layer."""
    rows = []
    for layers in zip(*(run.rows() for run in runs), strict=True):
        row = {key: layers[0][key] for key in ("depth", "layer", "op", "shape", "theory", "caveat")}
        for key, value in layers[0].items():
            if isinstance(value, float):
                values = [layer[key] for layer in layers]
                row[key] = statistics.fmean(values)
                row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def measure(names: list[str], seeds: int, count: int, features: int) -> dict:
    from pnnh.analysis import Decoder, diagnose
    from pnnh.report import dissipation as figures
    from pnnh.report import write_text

    batch, nets, shown = images(count), {}, []
    for name in names:
        runs = []
        for seed in range(seeds):
            how = {"training": True, "batch_size": 32, "decoder": Decoder(features=features)}
            runs.append(diagnose(build(name, seed), batch, name=name, seed=seed, **how))
            crossings = [runs[-1].crossing(measure) for measure in ("r2", "cka", "ssim")]
            print(name, seed, crossings, f"{runs[-1].gradient_growth:.3g}", flush=True)
        nets[name] = {
            "dissipation_depth": [run.dissipation_depth for run in runs],
            "cka_depth": [run.crossing("cka") for run in runs],
            "ssim_depth": [run.crossing("ssim") for run in runs],
            "gradient_growth": [run.gradient_growth for run in runs],
            "settings": runs[0].settings,
            "rows": over_seeds(runs),
            "correlation": torch.stack([run.correlation for run in runs]).nanmean(0).tolist(),
        }
        shown.append(runs[0])
        labels = [(NAMES.get(run.model, run.model), run.rows()) for run in shown]
        svg = figures.read_back(shown[0].originals, labels, [run.pictures for run in shown])
        write_text(FIGURES / "dissipation-pictures.svg", svg)
    return nets


def trained(folders: list[str], count: int) -> dict:
    """Checkpoint folders of ours, in eval mode."""
    from pnnh.analysis import diagnose
    from pnnh.cli._model import load_model

    nets = {}
    for folder in folders:
        run = diagnose(load_model(folder)[0], images(count), batch_size=32, name=Path(folder).name)
        print(folder, run.dissipation_depth, f"{run.gradient_growth:.3g}", flush=True)
        nets[run.model] = {
            "dissipation_depth": [run.dissipation_depth],
            "gradient_growth": [run.gradient_growth],
            "rows": over_seeds([run]),
            "correlation": run.correlation.tolist(),
        }
    return nets


def draw(record: dict, prefix: str) -> None:
    from pnnh.report import dissipation as figures
    from pnnh.report import write_text

    nets = [(NAMES.get(name, name), net["rows"]) for name, net in record["nets"].items()]
    write_text(FIGURES / f"{prefix}-information.svg", figures.information(nets))
    write_text(FIGURES / f"{prefix}-survival.svg", figures.survival(nets))
    write_text(FIGURES / f"{prefix}-gradient.svg", figures.gradient(nets))
    maps = [net["correlation"] for net in record["nets"].values()]
    write_text(FIGURES / f"{prefix}-correlations.svg", figures.correlations(nets, maps))


def main() -> None:
    from _evidence import evidence

    from pnnh.report import json_text, write_text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--weights", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--features", type=int, default=24, help="numbers kept of each cell, see pnnh.analysis.Decoder")
    options = parser.parse_args()
    prefix = "dissipation-trained" if options.weights else "dissipation"
    path = RESULTS / f"{prefix}.json"
    if not options.draw:
        if options.weights:
            nets = trained(options.weights, options.images)
        else:
            nets = measure(["vgg-like", *NAMES], options.seeds, options.images, options.features)
        seeds = [0] if options.weights else list(range(options.seeds))
        write_text(path, json_text({**evidence(), "seeds": seeds, "nets": nets}))
    draw(json.loads(path.read_text()), prefix)


if __name__ == "__main__":
    main()
