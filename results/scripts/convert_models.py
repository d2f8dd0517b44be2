"""Exact conversion of known residual nets, both forms: results/convert_models.json and .md.

    python results/scripts/convert_models.py [--only resnet18 ...] [--size 64]

Random non-trivial norm statistics; float64 proof at `--size` pixels; costs of one image at 224 pixels (a dry run on the
meta device, compared with the cost measured on the built twin at `--size`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from torch import nn

from pnnh._errors import UsageError
from pnnh.convert import convert, measure_cost

OUT = Path(__file__).parents[1]
CASES = [
    ("resnet18", "structured"),
    ("resnet18", "dense"),
    ("resnet34", "structured"),
    ("resnet34", "dense"),
    ("resnet50", "structured"),
    ("resnet50", "dense"),
    ("wide_resnet50_2", "structured"),
    ("resnext50_32x4d", "structured"),
    ("resnetv2_18", "structured"),
    ("resnetv2_18", "dense"),
    ("mobilenetv2_100", "structured"),
    ("convnext_atto", "structured"),
    ("seresnet50", "structured"),
    ("densenet121", "structured"),
]


def with_statistics(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def examine(name: str, form: str, size: int) -> dict:
    torch.manual_seed(0)
    model = with_statistics(timm.create_model(name))
    images = torch.randn(2, 3, size, size)
    start = time.perf_counter()
    try:
        twin, report = convert(model, images, form=form)
    except UsageError as refusal:
        return {"model": name, "form": form, "refused": str(refusal)}
    _, large = convert(model, torch.zeros(2, 3, 224, 224), form=form, dry_run=True)
    return {
        "model": name,
        "form": form,
        "joins": report.joins,
        "plain": report.certificate.plain,
        "redundant_activations": report.certificate.num_redundant,
        "relative_error_float64": report.agreement.relative_error,
        "cost_report_is_the_measured_cost": measure_cost(twin, images) == report.after,
        "before_224px": vars(large.before),
        "after_224px": vars(large.after),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    target = OUT / "convert_models.json"
    rows = json.loads(target.read_text())["rows"] if target.exists() else []
    for name, form in CASES:
        if arguments.only is not None and name not in arguments.only:
            continue
        rows = [row for row in rows if (row["model"], row["form"]) != (name, form)]
        rows.append(examine(name, form, arguments.size))
        print(json.dumps(rows[-1]), flush=True)
        target.write_text(json.dumps(record(rows, arguments.size), indent=1) + "\n")
        (OUT / "convert_models.md").write_text(markdown(rows))


def record(rows: list[dict], size: int) -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=OUT)
    return {
        "command": f"python results/scripts/convert_models.py --size {size}",
        "date": datetime.now(UTC).date().isoformat(),
        "code": commit.stdout.strip(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "device": "cpu",
        "seed": 0,
        "rows": rows,
    }


def markdown(rows: list[dict]) -> str:
    lines = [
        "# Residual nets as exactly equal plain ones",
        "",
        "Costs of one image at 224 pixels, before -> after. Regenerate: `python results/scripts/convert_models.py`.",
        "",
        "| model | form | shortcuts | error, float64 | parameters | GMAC | activations, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['model']} | {row['form']} | refused: {row['refused']} | | | | |")
            continue
        before, after = row["before_224px"], row["after_224px"]
        cells = [row["model"], row["form"], row["joins"], f"{row['relative_error_float64']:.1e}"]
        cells.append(f"{before['parameters'] / 1e6:.1f}M -> {after['parameters'] / 1e6:.1f}M")
        cells.append(f"{before['macs'] / 1e9:.2f} -> {after['macs'] / 1e9:.2f}")
        cells.append(f"{before['activation_bytes'] / 1e6:.1f} -> {after['activation_bytes'] / 1e6:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
