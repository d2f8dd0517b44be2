"""The roofline beside the measurement: no operator is faster than its bytes or its arithmetic on this device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from pnnh.bench.ledger import Op

TRIAD_BYTES = {"cpu": (2**18, 2**20, 2**22, 2**24, 2**26), "cuda": (2**24, 2**26, 2**28, 2**30)}
GEMM_SIZE = {"cpu": 768, "cuda": 8192}


@dataclass(frozen=True)
class Rates:
    """What the device reached. flops: per second, square matrix product in `dtype`, fp32 accumulation.

    bandwidth: ((bytes moved, bytes per second), ...) of a triad a = b + s c; small ones stay in the caches.
    """

    dtype: str
    flops: float
    bandwidth: tuple[tuple[int, float], ...]

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(self)]

    def seconds(self, op: Op) -> float:
        """The least time `op` can take: max(bytes / bandwidth at that size, flops / matrix rate)."""
        rate = next((rate for size, rate in self.bandwidth if size >= op.bytes), self.bandwidth[-1][1])
        return max(op.bytes / rate, op.flops / self.flops)


@cache
def measure_rates(device: torch.device, dtype: torch.dtype, *, repeats: int = 10) -> Rates:
    """Best of `repeats`: a triad at several sizes in fp32 and a matrix product in `dtype`. Once per process."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    bandwidth = []
    for size in TRIAD_BYTES[kind]:
        a, b, c = torch.ones(3, size // 12, device=device)
        bandwidth.append(
            (size, size / _least(lambda a=a, b=b, c=c: torch.add(b, c, alpha=2.0, out=a), device, repeats))
        )
    n = GEMM_SIZE[kind]
    x, y = torch.ones(2, n, n, device=device, dtype=dtype)
    out = torch.empty_like(x)
    flops = 2 * n**3 / _least(lambda: torch.mm(x, y, out=out), device, repeats)
    return Rates(str(dtype).removeprefix("torch."), flops, tuple(bandwidth))


def roofline(ops: Sequence[Op], rates: Rates) -> list[dict[str, Any]]:
    """One row per phase and kind, the slowest first, and their total: work, predicted and measured milliseconds."""
    groups: dict[tuple[str, str], list[Op]] = {}
    for op in ops:
        groups.setdefault((op.phase, op.kind), []).append(op)
    rows = [_row(phase, kind, group, rates) for (phase, kind), group in groups.items()]
    rows.sort(key=lambda row: -row["measured_ms"])
    total = _row("all", "all", list(ops), rates)
    for row in (*rows, total):
        row["share_%"] = round(100 * row["measured_ms"] / total["measured_ms"], 1)
    return [*rows, total]


def _row(phase: str, kind: str, ops: list[Op], rates: Rates) -> dict[str, Any]:
    measured, predicted = (1e3 * sum(seconds) for seconds in ([op.seconds for op in ops], map(rates.seconds, ops)))
    return {
        "phase": phase,
        "kind": kind,
        "calls": len(ops),
        "gigabytes": round(sum(op.bytes for op in ops) / 1e9, 4),
        "gflop": round(sum(op.flops for op in ops) / 1e9, 3),
        "predicted_ms": round(predicted, 3),
        "measured_ms": round(measured, 3),
        "measured/predicted": round(measured / predicted, 2),
    }


def _least(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the quickest call, after one that does not count."""
    best = float("inf")
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
