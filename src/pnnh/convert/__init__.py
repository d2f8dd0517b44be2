"""Fuse, convert exactly, export, quantize: every result is proven equal, or measured."""

from pnnh.convert.convert import Conversion, convert
from pnnh.convert.equivalence import Agreement
from pnnh.convert.fuse import Fusion, fuse
from pnnh.convert.int8 import Quantized, quantize
from pnnh.convert.write import Exported, export

__all__ = [
    "Agreement",
    "Conversion",
    "Exported",
    "Fusion",
    "Quantized",
    "convert",
    "export",
    "fuse",
    "quantize",
]
