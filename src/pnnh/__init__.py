"""pnnh: deep networks without residual connections. Public names load on first use; importing costs nothing.

Some verbs have the name of the subpackage they live in. `pnnh.train` is the function; the parts it is made of are
imported from the package: `from pnnh.train import SGD`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pnnh import theory as theory
    from pnnh._errors import RunError as RunError
    from pnnh._errors import UsageError as UsageError
    from pnnh.analysis import Dissipation as Dissipation
    from pnnh.analysis import diagnose as diagnose
    from pnnh.analysis import watch as watch
    from pnnh.bench import Benchmark as Benchmark
    from pnnh.bench import bench as bench
    from pnnh.certify import Certificate as Certificate
    from pnnh.certify import certify as certify
    from pnnh.compare import Comparison as Comparison
    from pnnh.compare import Results as Results
    from pnnh.compare import compare as compare
    from pnnh.compare import recipe_for as recipe_for
    from pnnh.convert import Conversion as Conversion
    from pnnh.convert import Exported as Exported
    from pnnh.convert import Fusion as Fusion
    from pnnh.convert import convert as convert
    from pnnh.convert import export as export
    from pnnh.convert import fuse as fuse
    from pnnh.data import Dataset as Dataset
    from pnnh.data import load_data as load_data
    from pnnh.layers import BlockOptions as BlockOptions
    from pnnh.layers import PlainOptions as PlainOptions
    from pnnh.load import load_model as load_model
    from pnnh.models import create_model as create_model
    from pnnh.train import Recipe as Recipe
    from pnnh.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "Benchmark": "bench",
    "BlockOptions": "layers",
    "Certificate": "certify",
    "Comparison": "compare",
    "Conversion": "convert",
    "Dataset": "data",
    "Dissipation": "analysis",
    "Exported": "convert",
    "Fusion": "convert",
    "PlainOptions": "layers",
    "Recipe": "train",
    "Results": "compare",
    "RunError": "_errors",
    "UsageError": "_errors",
    "bench": "bench",
    "certify": "certify",
    "compare": "compare",
    "convert": "convert",
    "create_model": "models",
    "diagnose": "analysis",
    "export": "convert",
    "fuse": "convert",
    "load_data": "data",
    "load_model": "load",
    "recipe_for": "compare",
    "train": "train",
    "watch": "analysis",
}

__all__ = ["__version__", "theory", *_HOMES]


class _Face(ModuleType):
    """The module type of this package: a subpackage never takes the place of the verb that has its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name == "theory":
        return importlib.import_module("pnnh.theory")
    if name in _HOMES:
        return getattr(importlib.import_module(f"pnnh.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pnnh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Face
