"""Fuse, convert exactly, prove, plan memory, export."""

from pnnh.convert.convert import Conversion, convert
from pnnh.convert.export import Exported, export
from pnnh.convert.fuse import Fusion, fuse
from pnnh.convert.quantise import Quantised, quantise

__all__ = [
    "Conversion",
    "Exported",
    "Fusion",
    "Quantised",
    "convert",
    "export",
    "fuse",
    "quantise",
]
