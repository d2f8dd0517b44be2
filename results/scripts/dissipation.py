"""The phenomenon, measured: plain, residual and PNNH nets of depth 56, and a VGG-like net, at initialisation.

python results/scripts/dissipation.py           # measure (an hour on a core), then draw; runs on where it was stopped
python results/scripts/dissipation.py --draw    # the figures of docs/ again from the record

Trained nets, in eval mode on their own test images:

pnnh compare --data digits --depths 56 --seeds 0,1,2 --out runs/digits
python results/scripts/dissipation.py --weights 'runs/digits/models/*-56-*'
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import statistics
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
RESULTS, FIGURES = HERE.parent, HERE.parent.parent / "docs" / "figures"
PARTS = HERE.parent.parent / "runs" / "dissipation"  # one file a net and seed: what is there is not measured again
NAMES = {"plain_resnet56": "plain", "cifar_resnet56": "residual", "pnnh_resnet56": "PNNH"}
CSV = ("depth", "survival", "r2", "r2_floor", "r2_high", "cka", "cka_floor", "cka_high", "ssim", "ssim_floor")
CSV += ("ssim_high", "cosine", "effective_rank", "gradient")


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
    from pnnh.data import load_data

    data = load_data("cifar10")
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[:count]
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (data.test.images[order].float() / 255 - mean) / std


def build(name: str, seed: int) -> nn.Module:
    import timm

    import pnnh.models  # noqa: F401

    torch.manual_seed(seed)
    return vgg_like() if name == "vgg-like" else timm.create_model(name)


def over_seeds(runs: list[dict]) -> list[dict]:
    """Rows of mean and standard deviation over the seeds, layer by layer."""
    rows = []
    for layers in zip(*(run["rows"] for run in runs), strict=True):
        row = {key: layers[0][key] for key in ("depth", "layer", "op", "shape", "theory", "caveat")}
        for key, value in layers[0].items():
            if isinstance(value, float):
                values = [layer[key] for layer in layers]
                mean = statistics.fmean(values)  # NaN where a seed has none, which statistics.stdev does not take
                spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
                row |= {key: _short(mean), f"{key}_std": _short(spread)}
        row["agree"] = sum(bool(layer["agrees"]) for layer in layers)
        rows.append(row)
    return rows


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def part(found) -> dict:
    """What is kept of one diagnosis, as plain values and tensors."""
    crossings = {f"{m}_depth": found.crossing(m) for m in ("r2", "cka", "ssim")}
    maps = {"correlation": found.correlation, "originals": found.originals[:3], "pictures": found.pictures[:, :3]}
    return {
        **crossings,
        **maps,
        "rows": found.rows(),
        "settings": found.settings,
        "gradient_growth": found.gradient_growth,
    }


def kept(file: Path, make) -> dict:
    """The part in `file`, made and put there first if need be."""
    if not file.is_file():
        PARTS.mkdir(parents=True, exist_ok=True)
        torch.save(part(make()), file)
    return torch.load(file, weights_only=True)


def measure(names: list[str], seeds: int, count: int, features: int) -> dict[str, list[dict]]:
    """The nets at initialisation, seed by seed, so that what is there when it is stopped is of use."""
    from pnnh.analysis import Decoder, diagnose

    batch, runs = images(count), {}
    how = {"training": True, "batch_size": 32, "decoder": Decoder(features=features)}
    for seed in range(seeds):
        for name in names:
            file = PARTS / f"{name}-{seed}-{count}-{features}.pt"
            found = kept(file, lambda n=name, s=seed: diagnose(build(n, s), batch, name=n, seed=s, **how))
            runs.setdefault(name, []).append(found)
            crossed = {key: found[key] for key in ("r2_depth", "cka_depth", "ssim_depth", "gradient_growth")}
            print(name, seed, crossed, flush=True)
    return runs


def trained(patterns: list[str], count: int, data: str | None) -> dict[str, list[dict]]:
    """Checkpoint folders, in eval mode, on test images of their own data; a model's seeds together."""
    runs: dict[str, list[dict]] = {}
    for folder in sorted(folder for pattern in patterns for folder in Path().glob(pattern)):
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        record = json.loads((folder / "record.json").read_text())
        file = PARTS / f"{folder.name}-{weights[:12]}-{count}.pt"
        found = kept(file, lambda f=folder, d=data or record["data"]["name"]: diagnosed(f, d, count))
        runs.setdefault(record["model"]["name"], []).append(found)
        print(folder.name, found["r2_depth"], f"{found['gradient_growth']:.3g}", flush=True)
    return {name: runs[name] for name in [*(n for n in NAMES if n in runs), *(n for n in runs if n not in NAMES)]}


def diagnosed(folder: Path, data: str, count: int):
    from pnnh import diagnose, load_data, load_model
    from pnnh.train import Normalise

    loaded = load_data(data)
    images = Normalise(loaded, "cpu")(loaded.test.pixels(torch.arange(count)))
    return diagnose(load_model(str(folder)).eval(), images, name=folder.name)


def summed_up(runs: list[dict]) -> dict:
    from pnnh.report.dissipation import below

    keys = ("r2_depth", "cka_depth", "ssim_depth", "gradient_growth")
    return {
        **{f"below_{share}": [below(run["rows"], share) for run in runs] for share in (0.5, 0.05)},
        **{key: [run[key] for run in runs] for key in keys},
        "settings": runs[0]["settings"],
        "rows": over_seeds(runs),
        "correlation": torch.stack([run["correlation"] for run in runs]).nanmean(0).tolist(),
    }


def every_value(runs: dict[str, list[dict]]) -> str:
    """CSV of what the figures show, for each net, seed and layer."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(("net", "seed", *CSV))
    for name, found in runs.items():
        for seed, run in enumerate(found):
            out.writerows((name, seed, row["depth"], *(f"{row[k]:.5g}" for k in CSV[1:])) for row in run["rows"])
    return text.getvalue()


def draw_pictures(runs: dict[str, list[dict]], prefix: str) -> None:
    from pnnh.report import dissipation as figures
    from pnnh.report import write_text

    first = [found[0] for found in runs.values()]
    nets = [(NAMES.get(name, name), found[0]["rows"]) for name, found in runs.items()]
    svg = figures.read_back(first[0]["originals"], nets, [run["pictures"] for run in first])
    write_text(FIGURES / f"{prefix}-pictures.svg", svg)


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
    from pnnh.provenance import environment
    from pnnh.report import json_text, write_text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--weights", nargs="+", default=[], metavar="PATTERN", help="checkpoint folders")
    parser.add_argument("--data", help="images for --weights; default: what they were trained on")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--features", type=int, default=32, help="numbers kept of each cell, see pnnh.analysis.Decoder")
    options = parser.parse_args()
    prefix = "dissipation-trained" if options.weights else "dissipation"
    path = RESULTS / f"{prefix}.json"
    if not options.draw:
        if options.weights:
            runs = trained(options.weights, options.images, options.data)
        else:
            runs = measure(["vgg-like", *NAMES], options.seeds, options.images, options.features)
        seeds = list(range(max(map(len, runs.values()))))
        nets = {name: summed_up(found) for name, found in runs.items()}
        write_text(path, json_text({**environment(), "seeds": seeds, "nets": nets}))
        write_text(path.with_suffix(".csv"), every_value(runs))
        draw_pictures(runs, prefix)
    record = json.loads(path.read_text())
    draw(record, prefix)


if __name__ == "__main__":
    main()
