"""Fuse, convert exactly, prove, plan memory, export."""

from pnnh.convert.convert import Conversion, convert
from pnnh.convert.cost import Cost, measure_cost
from pnnh.convert.fuse import Fusion, fuse
from pnnh.convert.memory import MemoryPlan, plan_memory

__all__ = ["Conversion", "Cost", "Fusion", "MemoryPlan", "convert", "fuse", "measure_cost", "plan_memory"]
