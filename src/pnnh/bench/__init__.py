"""Measure side by side: interleaved pairs with a control, counted memory, counted cost."""

from pnnh.bench.cases import Report, Setting, bench, inference, training_step
from pnnh.bench.clock import Ratio, paired, ratio_of
from pnnh.bench.memory import LiveBytes

__all__ = ["LiveBytes", "Ratio", "Report", "Setting", "bench", "inference", "paired", "ratio_of", "training_step"]
