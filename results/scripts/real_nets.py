"""Trained residual nets of other people, converted, exported and quantized: results/real-nets.json.

    python results/scripts/real_nets.py --resnets DIR --cifar DIR --efficientnet FILE.pth --photos DIR
        [--images 10000] [--only NAME ...]

DIR of --resnets holds resnet{20,32,44,56}.safetensors (He et al.'s CIFAR ResNets, option-A shortcuts); --cifar has
test/ and train/ with a folder of lossless strips a class (images of 32 x 32, one below the other); --photos has
photographs named by their ImageNet class. Per net: certificate, both conversions, the exported float32 and int8 files
in onnxruntime, how many answers are those of the source, and accuracy. A net that is in the record already is kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pnnh import certify, convert, diagnose, export
from pnnh._errors import UsageError
from pnnh.convert import quantize
from pnnh.convert.write import onnx_runner
from pnnh.provenance import environment

ROOT = Path(__file__).resolve().parents[2]

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
TARGET = ROOT / "results" / "real-nets.json"


class Block(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))); the shortcut takes every second pixel and pads channels."""

    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.pad = (out - width) // 2 if stride > 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2015 of depth 6 n + 2, widths 16, 32, 64."""

    def __init__(self, depth: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages, width = [], 16
        for out in (16, 32, 64):
            blocks = [Block(width if i == 0 else out, out, 2 if i == 0 and out > 16 else 1) for i in range(depth // 6)]
            stages.append(nn.Sequential(*blocks))
            width = out
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


def strips(folder: Path, each: int | None = None) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] and labels [N]; `each`: only so many of a class, from its first strip."""
    images, labels = [], []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir())):
        files = sorted((folder / name).glob("*.webp"))[: 1 if each else None]
        pixels = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 32, 32, 3) for file in files])[:each]
        images.append(torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2))
        labels.append(torch.full((len(pixels),), label))
    return torch.cat(images), torch.cat(labels)


def photographs(folder: Path) -> tuple[Tensor, Tensor]:
    files = sorted(folder.rglob("*.jpg"))
    pixels = [torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy()).permute(2, 0, 1) for file in files]
    return torch.stack(pixels), torch.tensor([int(file.name.split("_")[0]) for file in files])


def answers(run, images: Tensor, normalise, size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(normalise(part)).argmax(1) for part in images.split(size)])


def examine(net: nn.Module, images: Tensor, labels: Tensor, calibration: Tensor, normalise, size: int) -> dict:
    """Everything about one net; a form or a file that is refused is recorded with its reason."""
    example = normalise(images[: min(size, 8)])
    found = certify(net, example[:2])
    truth = answers(net, images, normalise, size)
    depth = diagnose(net, normalise(images[:64]), pictures=0, gradient=False).dissipation_depth
    row = {"parameters": sum(p.numel() for p in net.parameters()), "plain": found.plain, "joins": len(found.joins)}
    row |= {"images": len(images), "accuracy": share(truth, labels), "dissipation_depth": depth, "forms": {}}
    nets: dict[str, nn.Module] = {"source": net}
    for form in ("structured", "dense"):
        try:
            nets[form], report = convert(net, example[:2], form=form)
        except UsageError as refusal:
            row["forms"][form] = {"refused": str(refusal)}
            continue
        row["forms"][form] = {
            "said": str(report),
            "error_float64": report.agreement.relative_error,
            "error_float32": report.rounding.relative_error,
            "plain": report.certificate.plain,
            "parameters": report.after.num_params,
            "macs_ratio": report.after.macs / report.before.macs,
        }
    for form, twin in nets.items():
        facts = row["forms"].setdefault(form, {})
        with tempfile.TemporaryDirectory() as folder:
            done = export(twin, example, Path(folder) / "net.onnx")
            facts |= {"fused": done.fused, "chain": done.chain, "operators": done.op_types}
            facts["onnxruntime_error"] = done.worst.relative_error
            facts["bytes_float32"] = done.bytes
            small = quantize(done.path, Path(folder) / "int8.onnx", normalise(calibration))
            facts |= {"bytes_int8": small.bytes_after, "worst_layer_sqnr_db": small.worst_db}
            for name, path in (("float32", done.path), ("int8", small.path)):
                told = answers(onnx_runner(path), images, normalise, size)
                facts[f"accuracy_{name}"] = share(told, labels)
                facts[f"answers_kept_{name}"] = int((told == truth).sum())
    return row


def share(told: Tensor, labels: Tensor) -> float:
    return float((told == labels).double().mean())


def nets_of(chosen: argparse.Namespace) -> Iterator[tuple[str, tuple]]:
    """(name, arguments of `examine`) of every net whose files were given."""
    if chosen.resnets:
        images, labels = strips(chosen.cifar / "test")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: chosen.images]
        calibration, _ = strips(chosen.cifar / "train", each=26)
        for depth in (20, 32, 44, 56):
            net = ResNet(depth)
            net.load_state_dict(load_file(chosen.resnets / f"resnet{depth}.safetensors"), strict=False)
            normalise = lambda pixels: (pixels.float() / 255 - MEAN) / STD  # noqa: E731
            yield f"CIFAR ResNet-{depth}", (net.eval(), images[order], labels[order], calibration, normalise, 250)
    if chosen.efficientnet:
        net = timm.create_model("tf_efficientnet_lite0")
        weights = torch.load(chosen.efficientnet, map_location="cpu", weights_only=True)
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
        images, labels = photographs(chosen.photos)
        half = lambda pixels: pixels.float() / 127.5 - 1  # noqa: E731
        yield "EfficientNet-Lite0", (net.eval(), images, labels, images[::8], half, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("resnets", "cifar", "efficientnet", "photos"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--only", nargs="*")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(TARGET.read_text()) if TARGET.exists() else {"nets": {}}
    for name, arguments in nets_of(chosen):
        if name in record["nets"] or (chosen.only and name not in chosen.only):
            continue
        record["nets"][name] = examine(*arguments)
        record |= environment() | {"command": "python results/scripts/real_nets.py --resnets DIR --cifar DIR ..."}
        record["versions"]["onnxruntime"] = onnxruntime.__version__
        TARGET.write_text(json.dumps(record, indent=1) + "\n")
        print(name, json.dumps(record["nets"][name])[:400], flush=True)


if __name__ == "__main__":
    main()
