"""Measure side by side: interleaved pairs with a control, counted memory, counted cost, a roofline beside it."""

from pnnh.bench.cases import WORKS, Inference, Setting, TrainingStep
from pnnh.bench.clock import Ratio, Timing, paired, ratio_of
from pnnh.bench.ledger import Ledger, Op, ledger
from pnnh.bench.presets import PRESETS, Preset, known
from pnnh.bench.roofline import Rates, measure_rates, roofline
from pnnh.bench.suite import Report, bench, verdict
from pnnh.cost import LiveBytes, peak_bytes

__all__ = [
    "PRESETS",
    "WORKS",
    "Inference",
    "Ledger",
    "LiveBytes",
    "Op",
    "Preset",
    "Rates",
    "Ratio",
    "Report",
    "Setting",
    "Timing",
    "TrainingStep",
    "bench",
    "known",
    "ledger",
    "measure_rates",
    "paired",
    "peak_bytes",
    "ratio_of",
    "roofline",
    "verdict",
]
