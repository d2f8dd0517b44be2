"""Models side by side: times in interleaved pairs with a control, memory and operations counted."""

from pnnh.bench.cases import WORKS, Inference, Setting, TrainingStep
from pnnh.bench.clock import Ratio, Timing, paired, ratio_of
from pnnh.bench.presets import PRESETS, Preset
from pnnh.bench.suite import Benchmark, Entry, bench

__all__ = [
    "PRESETS",
    "WORKS",
    "Benchmark",
    "Entry",
    "Inference",
    "Preset",
    "Ratio",
    "Setting",
    "Timing",
    "TrainingStep",
    "bench",
    "paired",
    "ratio_of",
]
