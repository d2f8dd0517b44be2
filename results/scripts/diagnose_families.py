"""Diagnose one small model of every timm family with random weights: results/diagnose_families.json and .md.

    python results/scripts/diagnose_families.py [--only resnet vision_transformer ...]

Images are reduced where the architecture takes it (96 or 128 pixels), else of the model's own size. A failure is
recorded with its reason, never skipped.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import timm
import torch
from _evidence import evidence

from pnnh.analysis import Decoder, diagnose
from pnnh.report import json_text, write_text

OUT = Path(__file__).resolve().parents[1]
SMALL = (
    "pico",
    "femto",
    "atto",
    "zepto",
    "nano",
    "tiny",
    "xxs",
    "xxsmall",
    "small",
    "mini",
    "s0",
    "b0",
    "t0",
    "18",
    "11",
)
CHEAP = Decoder(grid=4, features=8, ridges=(1e-2, 1.0))


def families() -> dict[str, str]:
    """timm module -> the member with the fewest parameters among the four that sound smallest."""
    return {
        module: _smallest(timm.list_models(module=module))
        for module in timm.list_modules()
        if timm.list_models(module=module)
    }


def _smallest(names: list[str]) -> str:
    def sounds(name: str) -> tuple:
        return next((place for place, part in enumerate(SMALL) if part in name), len(SMALL)), len(name), name

    def weighs(name: str) -> float:
        try:
            with torch.device("meta"):
                return sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # a constructor that computes with values; its rank by name stands
            return float("inf")

    candidates = sorted(names, key=sounds)[:4]
    return candidates[0] if len(candidates) == 1 else min(candidates, key=weighs)


def sizes(name: str) -> list[tuple[dict, int]]:
    """(constructor arguments, image size) to try in turn."""
    config = timm.get_pretrained_cfg(name)
    own = config.input_size[-1] if config else 224
    smaller = [] if config and config.fixed_input_size else [({}, size) for size in (96, 128) if size < own]
    return [*smaller, *(({"img_size": size}, size) for size in (96, 128) if size < own), ({}, own)]


def examine(family: str, name: str) -> dict:
    row = {"family": family, "model": name, "image_size": None, "activations": None, "r2_first": None, "r2_last": None}
    start, note = time.perf_counter(), ""
    for kwargs, size in sizes(name):
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, **kwargs)
            images = torch.randn(8, model.pretrained_cfg["input_size"][0], size, size)
            found = diagnose(model, images, training=True, decoder=CHEAP, batch_size=8, draws=2, pictures=1)
        except Exception as error:
            note = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        layers = found.layers
        row |= {"image_size": size, "activations": len(layers), "r2_first": layers[0].r2, "r2_last": layers[-1].r2}
        row |= {
            "gradients": sum(layer.gradient == layer.gradient for layer in layers),
            "ops": sorted({x.op for x in layers}),
        }
        return {**row, "ok": True, "seconds": round(time.perf_counter() - start, 1), "note": ""}
    return {**row, "ok": False, "seconds": round(time.perf_counter() - start, 1), "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="timm module names")
    only = parser.parse_args().only
    rows = []
    for family, name in families().items():
        if only is None or family in only:
            rows.append(examine(family, name))
            print(rows[-1], flush=True)
            gc.collect()
            if only is None:
                save(rows)


def save(rows: list[dict]) -> None:
    done = sum(row["ok"] for row in rows)
    record = {**evidence(), "families": len(rows), "diagnosed": done, "rows": rows}
    write_text(OUT / "diagnose_families.json", json_text(record))
    lines = [
        f"{done} of {len(rows)} timm families diagnosed (smallest member, random weights): `{record['command']}`.",
        "",
    ]
    lines += ["| family | model | pixels | activations | functions | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            row["family"],
            row["model"],
            row["image_size"],
            row["activations"],
            " ".join(row.get("ops", [])),
            row["note"],
        ]
        lines.append("| " + " | ".join("" if cell is None else str(cell).replace("|", "/") for cell in cells) + " |")
    write_text(OUT / "diagnose_families.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
