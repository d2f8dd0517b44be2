"""What widens an A/A control? A net's training step against its own copy, under each suspect, by both clocks.

    python results/scripts/clock_noise.py        two minutes on quiet cores; writes results/clock-noise.json
    python results/scripts/clock_noise.py quick  a few seconds, writes nothing

One row per condition, clock and calls per side (the least of them counts). pair_sd_%: spread of the pairs' ratios;
interval_%: half the 95 % interval of the median that 30 such pairs give; copies_%: spread of the medians over fresh
copies beyond what the pairs explain; control: the median of all pairs.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from rich.console import Console

import pnnh.models  # noqa: F401
from pnnh.bench import Setting, TrainingStep
from pnnh.bench.clock import timed
from pnnh.provenance import environment
from pnnh.report import json_text, terminal, write_text

CPU = torch.device("cpu")
CONDITIONS = ("as it comes", "no garbage collection", "no garbage collection, one core")


def readings(copies: int, blocks: int) -> np.ndarray:
    """[copy, block, side, call, clock]: blocks of AAA BBB, then BBB AAA, on fresh copies."""
    model = timm.create_model("cifar_resnet20")
    rows = []
    for _ in range(copies):
        works = [TrainingStep(model, Setting(batch_size=8)) for _ in range(2)]
        for work in (*works, *works):
            work()
        for block in range(blocks):
            sides = {}
            for side in (0, 1)[:: -1 if block % 2 else 1]:
                sides[side] = [timed(works[side], CPU) for _ in range(3)]
            rows.append([sides[0], sides[1]])
    return np.array(rows).reshape(copies, blocks, 2, 3, 2)


def rows_of(condition: str, times: np.ndarray) -> list[dict]:
    rows = []
    for clock, name in enumerate(("wall", "cpu")):
        for calls in (1, 2, 3):
            least = times[..., :calls, clock].min(axis=-1)  # [copy, block, side]
            ratios = np.log(least[..., 1] / least[..., 0])
            medians = np.median(ratios, axis=1)
            spread = 1.4826 * np.median(np.abs(ratios - medians[:, None]))
            explained = 1.2533 * spread / ratios.shape[1] ** 0.5
            rows.append(
                {
                    "condition": condition,
                    "clock": name,
                    "calls": calls,
                    "pair_sd_%": 100 * spread,
                    "interval_%": 100 * 1.96 * 1.2533 * spread / 30**0.5,
                    "copies_%": 100 * max(0.0, medians.var(ddof=1) - explained**2) ** 0.5,
                    "control": float(np.exp(np.median(ratios))),
                }
            )
    return rows


def main() -> None:
    quick = sys.argv[1:] == ["quick"]
    copies, blocks = (2, 3) if quick else (5, 40)
    rows, usual = [], os.sched_getaffinity(0)
    for condition in CONDITIONS:
        gc.collect()
        gc.enable() if condition == CONDITIONS[0] else gc.disable()
        os.sched_setaffinity(0, {max(usual)} if "one core" in condition else usual)
        rows += rows_of(condition, readings(copies, blocks))
    Console(width=160).print(terminal(rows, "training steps of cifar_resnet20, 8 images, against their own copies"))
    if not quick:
        path = Path(__file__).parents[1] / "clock-noise.json"
        write_text(path, json_text({"rows": rows, "copies": copies, "blocks": blocks} | environment()))


if __name__ == "__main__":
    main()
