"""Fuse, convert exactly, prove, plan memory, export."""

from pnnh.convert.convert import Conversion, convert
from pnnh.convert.cost import InferenceCost, measure_cost
from pnnh.convert.export import Exported, export
from pnnh.convert.fuse import Fusion, fuse
from pnnh.convert.memory import MemoryPlan, plan_memory
from pnnh.convert.quantise import Quantised, quantise

__all__ = [
    "Conversion",
    "Exported",
    "Fusion",
    "InferenceCost",
    "MemoryPlan",
    "Quantised",
    "convert",
    "export",
    "fuse",
    "measure_cost",
    "plan_memory",
    "quantise",
]
