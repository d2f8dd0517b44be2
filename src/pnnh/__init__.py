"""pnnh: deep networks without residual connections. Public names load on first use; importing costs nothing.

Three subpackages share their name with their verb (`certify`, `convert`, `train`). Such a package can be called:
`pnnh.certify(model, example)` is `pnnh.certify.certify(model, example)`, whichever was imported first.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BlockOptions": "layers",
    "Certificate": "certify",
    "Comparison": "recipes",
    "Conversion": "convert",
    "Dataset": "data",
    "Dissipation": "analysis",
    "Exported": "convert",
    "Fusion": "convert",
    "PlainOptions": "layers",
    "Recipe": "train",
    "create_model": "models",
    "diagnose": "analysis",
    "export": "convert",
    "fuse": "convert",
    "load_data": "data",
    "publish": "hub",
    "measure_cost": "cost",
    "plan_memory": "cost",
    "quantise": "convert",
    "recipe_for": "recipes",
    "solve_shift": "theory",
}
_VERBS = ("certify", "convert", "train")

__all__ = ["__version__", *_HOMES, *_VERBS]


class _Package(ModuleType):
    """Makes a subpackage callable at the moment the import system attaches it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


class _Verb(ModuleType):
    """A subpackage that does what it is called when it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
