"""Timing two works against each other: interleaved ABBA pairs, the median of paired ratios, a bootstrap interval.

What would widen the control, and what is done about it: garbage collection (off while the clock runs), the memory
that one side happens to lie in (both are built anew in every round, in alternating order), interruptions (each side of
a pair is the least of a few calls), drift (ABBA), other programs (two clocks: wall, and the CPU time used).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

Work = Callable[[], object]
Reading = tuple[float, float]  # seconds of wall time, seconds of this process's CPU time


@dataclass(frozen=True)
class Ratio:
    """Time of B over time of A. `low`, `high`: 95 % bootstrap interval of the median over `pairs` pairs.

    `median_a`, `median_b`: seconds, for orientation only; they depend on the machine, the ratio far less.
    """

    ratio: float
    low: float
    high: float
    pairs: int
    median_a: float
    median_b: float

    @property
    def error(self) -> float:
        """Half the interval, as a share of the ratio."""
        return (self.high - self.low) / 2 / self.ratio

    @property
    def differs(self) -> bool:
        """The interval excludes 1: there is a difference, if the control (A against its own copy) shows none."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True)
class Timing:
    """`wall` is what a user waits for; `cpu` what this process used, which other programs disturb less.

    `busy`: CPU seconds per wall second. On one thread, clearly below 1 means that other programs had the core.
    """

    wall: Ratio
    cpu: Ratio
    busy: float


def paired(
    make_a: Callable[[], Work],
    make_b: Callable[[], Work],
    *,
    device: torch.device,
    pairs: int = 30,
    rounds: int = 3,
    repeats: int = 2,
    warmup: int = 2,
    error: float = math.inf,
    at_most: int = 4,
) -> Timing:
    """Time B against A in `pairs` pairs, A B B A A B ..., each side of a pair the least of `repeats` calls.

    The pairs are spread over `rounds`; every round makes A and B anew and calls each `warmup` times first. Rounds are
    added, up to `at_most` times as many, until the wall clock's ratio is known within `error` (a share of it).
    """
    times: list[tuple[Reading, Reading]] = []
    usual = np.array_split(np.arange(pairs), rounds)
    with undisturbed():
        for round_, numbers in enumerate(usual * at_most):
            if round_ >= rounds and ratio_of(np.asarray(times)[:, :, 0]).error <= error:
                break
            if round_ % 2:
                b, a = make_b(), make_a()
            else:
                a, b = make_a(), make_b()
            for work in (a, b):
                for _ in range(warmup):
                    work()
            times += [_pair(a, b, device, repeats, swapped=bool(number % 2)) for number in numbers]
            del a, b
    both = np.asarray(times)  # [pair, side, clock]
    wall, cpu = (ratio_of(both[:, :, clock]) for clock in (0, 1))
    return Timing(wall, cpu, float(both[..., 1].sum() / both[..., 0].sum()))


def ratio_of(times: Sequence[tuple[float, float]] | np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Ratio:
    """Median of B/A over the pairs and its percentile bootstrap interval."""
    both = np.asarray(times, dtype=np.float64)
    ratios = both[:, 1] / both[:, 0]
    draws = np.random.default_rng(seed).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    median_a, median_b = np.median(both, axis=0)
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios), float(median_a), float(median_b))


def timed(work: Work, device: torch.device) -> Reading:
    """Seconds of one call. On a GPU: between two events in its queue, and twice the same figure."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return (start.elapsed_time(end) / 1e3,) * 2
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection within the block."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _pair(a: Work, b: Work, device: torch.device, repeats: int, *, swapped: bool) -> tuple[Reading, Reading]:
    def least(work: Work) -> Reading:
        walls, cpus = zip(*(timed(work, device) for _ in range(repeats)), strict=True)
        return min(walls), min(cpus)

    if swapped:
        second = least(b)
        return least(a), second
    return least(a), least(b)
