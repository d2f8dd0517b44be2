"""What a training step asks of the machine, counted: operators, bytes, FLOPs and peak memory of PNNH nets and twins.

    python results/scripts/step_account.py

Nothing is timed, so the record does not depend on the machine; `pnnh bench` puts measured times beside these counts.
Writes results/step-account.json.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from _ledger import ledger
from rich.console import Console

import pnnh.models  # noqa: F401
from pnnh.bench import Setting, TrainingStep
from pnnh.cost import peak_bytes
from pnnh.provenance import environment
from pnnh.report import json_text, terminal, write_text

BATCH = 32
NETS = ("cifar_resnet56", "pnnh_resnet56", "plain_resnet56")


def account(name: str) -> tuple[dict, list[dict]]:
    """One row of totals, and rows per phase and kind of operator."""
    step = TrainingStep(timm.create_model(name), Setting(batch_size=BATCH))
    step()
    ops = ledger(step, repeats=1)
    half = TrainingStep(timm.create_model(name), Setting(batch_size=BATCH, amp="bf16"))
    half()
    cpu = torch.device("cpu")
    total = {
        "model": name,
        "operators": len(ops),
        "gigabytes": total_of(ops, "bytes"),
        "gflop": total_of(ops, "flops"),
        "peak_mb": peak_bytes(step, cpu) / 1e6,
        "bf16_peak_mb": peak_bytes(half, cpu) / 1e6,
    }
    kinds = {(op.phase, op.kind) for op in ops}
    parts = []
    for phase, kind in sorted(kinds):
        group = [op for op in ops if (op.phase, op.kind) == (phase, kind)]
        counts = {"calls": len(group), "gigabytes": total_of(group, "bytes"), "gflop": total_of(group, "flops")}
        parts.append({"model": name, "phase": phase, "kind": kind} | counts)
    return total, parts


def total_of(ops: list, what: str) -> float:
    return sum(getattr(op, what) for op in ops) / 1e9


def main() -> None:
    totals, parts = zip(*map(account, NETS), strict=True)
    rows = [row for group in parts for row in group]
    first = totals[0]
    ratios = [{"model": row["model"]} | {key: row[key] / first[key] for key in row if key != "model"} for row in totals]
    for title, table in (("totals", totals), (f"over {first['model']}", ratios), ("by kind", rows)):
        Console(width=140).print(terminal(table, title))
    path = Path(__file__).parents[1] / "step-account.json"
    write_text(path, json_text({"batch_size": BATCH, "totals": totals, "ratios": ratios, "rows": rows} | environment()))


if __name__ == "__main__":
    main()
