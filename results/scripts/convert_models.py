"""Exact conversion of known residual nets, both forms: results/convert_models.json.

    python results/scripts/convert_models.py [--only resnet18 ...] [--size 32] [--data cifar10]

Random non-trivial norm statistics. Proof in float64 on real images (resized to `--size` pixels; the error does not
depend on the resolution) and on Gaussian noise. The cost of one image that a dry run predicts, at 224 pixels, is
compared with the cost measured on the built twin. Where the dense twin is too large to build (weights in float64 above
5 GB) its cost is predicted only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision
from _norms import with_statistics
from torch import nn
from torch.nn.functional import interpolate

from pnnh._errors import UsageError
from pnnh.convert import convert
from pnnh.cost import measure_cost
from pnnh.data import load_data
from pnnh.provenance import environment
from pnnh.train.evaluate import Normalise

OUT = Path(__file__).parents[1]
BOTH, STRUCTURED = ("structured", "dense"), ("structured",)


class MlpSublayer(nn.Module):
    """x + mlp(norm(x)) of a timm ViT-Tiny block, after its patch embedding."""

    def __init__(self):
        super().__init__()
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4)
        self.embed, self.norm, self.mlp = vit.patch_embed, vit.blocks[0].norm2, vit.blocks[0].mlp

    def forward(self, x):
        x = self.embed(x)
        return x + self.mlp(self.norm(x))


def mobilenet(act: type[nn.Module]) -> Callable[[], nn.Module]:
    """MobileNetV2's inverted residuals with an activation that has a lossless code (its own ReLU6 clips)."""
    return lambda: timm.create_model("mobilenetv2_100", act_layer=act)


CASES: dict[str, tuple[Callable[[], nn.Module] | str, tuple[str, ...]]] = {
    "resnet18": ("timm", BOTH),
    "resnet34": ("timm", BOTH),
    "resnet50": ("timm", BOTH),
    "resnet101": ("timm", BOTH),
    "resnet152": ("timm", BOTH),
    "wide_resnet50_2": ("timm", BOTH),
    "resnext50_32x4d": ("timm", BOTH),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(), BOTH),
    "resnetv2_18 (pre-activation)": (lambda: timm.create_model("resnetv2_18"), BOTH),
    "mobilenetv2_100": ("timm", STRUCTURED),
    "mobilenetv2_100, ReLU": (mobilenet(nn.ReLU), STRUCTURED),
    "mobilenetv2_100, hard-swish": (mobilenet(nn.Hardswish), STRUCTURED),
    "convnext_atto": ("timm", STRUCTURED),
    "ViT-Tiny MLP sublayer": (MlpSublayer, STRUCTURED),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32), STRUCTURED),
    "seresnet50": ("timm", STRUCTURED),
    "densenet121": ("timm", STRUCTURED),
}
SMALL = ("ViT-Tiny MLP sublayer", "vit_tiny_patch16_224")  # built for images of 32 pixels
TOO_LARGE = [(name, "dense") for name in ("resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d")]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    make = CASES[name][0]
    return with_statistics(timm.create_model(name) if isinstance(make, str) else make())


def examine(name: str, form: str, images: torch.Tensor) -> dict:
    model, row, start = build(name), {"model": name, "form": form}, time.perf_counter()
    large = images if name in SMALL else torch.zeros(2, 3, 224, 224)
    try:
        _, predicted = convert(model, large, form=form, dry_run=True)
    except UsageError as refusal:
        return row | {"refused": str(refusal)}
    row |= {"pixels": large.shape[-1], "before": vars(predicted.before), "predicted": vars(predicted.after)}
    if (name, form) in TOO_LARGE:
        return row
    twin, report = convert(model, images, form=form)
    measured = measure_cost(twin, large)
    return row | {
        "joins": report.joins,
        "plain": report.certificate.plain,
        "redundant_activations": report.certificate.num_redundant,
        "relative_error_float64": report.agreement.relative_error,
        "argmax": report.agreement.argmax,
        "measured": vars(measured),
        "prediction_holds": predicted.after == measured,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--data", default="cifar10")
    chosen = parser.parse_args()
    data = load_data(chosen.data)
    images = interpolate(Normalise(data, "cpu")(data.test.images[:2]), size=(chosen.size,) * 2, mode="bilinear")
    target = OUT / "convert_models.json"
    rows = json.loads(target.read_text())["rows"] if target.exists() else []
    todo = [(name, form) for name, (_, forms) in CASES.items() for form in forms]
    for name, form in todo:
        if chosen.only is not None and name not in chosen.only:
            continue
        row = examine(name, form, images)
        print(json.dumps(row), flush=True)
        rows = [other for other in rows if (other["model"], other["form"]) != (name, form)] + [row]
        rows.sort(key=lambda row: todo.index((row["model"], row["form"])))
        record = environment() | {"seed": 0, "size": chosen.size, "data": data.to_dict(), "rows": rows}
        record["command"] = f"python results/scripts/convert_models.py --size {chosen.size}"
        target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
