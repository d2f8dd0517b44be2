"""Timing two things against each other: interleaved ABBA pairs, the median of paired ratios, a bootstrap interval."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Ratio:
    """Time of B over time of A. `low`, `high`: 95 % bootstrap interval of the median over `pairs` pairs.

    `median_a`, `median_b`: seconds, for orientation only; they depend on the machine and its mood, the ratio far less.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    median_a: float
    median_b: float

    @property
    def differs(self) -> bool:
        """The interval excludes 1: there is a difference to speak of (if the A/A control has none)."""
        return not self.low <= 1 <= self.high

    def rows(self) -> list[dict]:
        return [asdict(self)]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue emptied before and after."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def paired(a: Callable, b: Callable, *, device: torch.device, pairs: int = 30, warmup: int = 3) -> Ratio:
    """Run A B B A A B B A ... after `warmup` calls of each; every neighbouring A and B is a pair."""
    for work in (a, b):
        for _ in range(warmup):
            work()
    times: list[tuple[float, float]] = []
    for index in range(pairs):
        if index % 2:
            second, first = timed(b, device), timed(a, device)
        else:
            first, second = timed(a, device), timed(b, device)
        times.append((first, second))
    return ratio_of(times)


def ratio_of(times: Sequence[tuple[float, float]], *, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Median of B/A over the pairs and its percentile bootstrap interval."""
    both = np.asarray(times, dtype=np.float64)
    ratios = both[:, 1] / both[:, 0]
    draws = np.random.default_rng(seed).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    median_a, median_b = np.median(both, axis=0)
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios), float(median_a), float(median_b))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
