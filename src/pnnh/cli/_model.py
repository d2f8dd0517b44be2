"""MODEL on a command line: a checkpoint folder of ours, `module:function`, or a timm name. One place says no."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path

from pnnh._errors import RunError, UsageError

FORMS = "a timm name (resnet18, pnnh_...), a checkpoint folder, or module:function"


def load_model(
    spec: str,
    *,
    weights: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
):
    """Build the model that `spec` names, in eval mode on the CPU, and the shape of one input.

    Args:
        spec: a folder with `record.json` and `model.safetensors`; `module:function` (called without arguments); or a
            name known to timm, ours included.
        weights: a .safetensors file to load strictly, or "pretrained" for timm's own weights.
        num_classes, in_chans, image_size: passed to timm; refused for checkpoints and functions, which know their own
            (image_size is always taken as the size of the example input).

    Returns:
        (model, shape): shape is (C, H, W) of one image, without the batch.

    Raises:
        UsageError: the name or file means nothing. RunError: the weights do not fit.
    """
    if not spec.strip():
        raise UsageError(f"MODEL is empty; give {FORMS}")
    changes = {"num_classes": num_classes, "in_chans": in_chans}
    changes = {key: value for key, value in changes.items() if value is not None}
    if (Path(spec) / "record.json").is_file():
        model, shape = _from_checkpoint(Path(spec), changes)
    elif ":" in spec and not spec.startswith("hf"):
        model, shape = _from_function(spec, changes)
    else:
        model, shape = _from_timm(spec, weights == "pretrained", changes, image_size)
    if weights is not None and weights != "pretrained":
        load_weights(model, Path(weights))
    if image_size is not None:
        shape = (shape[0], image_size, image_size)
    return model.eval(), shape


def load_weights(model, file: Path) -> None:
    """Load a .safetensors file into `model`, every name matched (aliases of shared tensors excepted)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model as load_into

    if not file.is_file():
        raise UsageError(f"no weights file at {file}; give a .safetensors file or 'pretrained'")
    if file.suffix != ".safetensors":
        raise UsageError(
            f"weights {file.name!r} are not .safetensors; pickled checkpoints are not read, convert them first"
        )
    try:
        load_into(model, file)
    except (RuntimeError, SafetensorError) as error:
        raise RunError(f"{file} does not fit {type(model).__name__}: {str(error).splitlines()[0][:200]}") from error


def _from_checkpoint(folder: Path, changes: dict):
    """Built as its record says, weights checked against their hashes; fused checkpoints come back fused."""
    from pnnh.train import checkpoint

    if changes:
        raise UsageError(f"a checkpoint knows its own {', '.join(changes)}; drop the option or name a timm model")
    saved = checkpoint.load(folder)
    try:
        name, kwargs = saved.record["model"]["name"], dict(saved.record["model"].get("kwargs") or {})
    except (KeyError, TypeError) as error:
        raise UsageError(f'{folder}/record.json has no "model": {{"name": ..., "kwargs": ...}}') from error
    home = saved.record["model"].get("folder")
    model, shape = _from_function(name, kwargs, home) if ":" in name else _from_timm(name, False, kwargs, None)
    data = saved.record.get("data") or {}
    shape = (data.get("channels", shape[0]), *[data.get("image_size", side) for side in shape[1:]])
    storage, form = saved.record["model"].get("storage"), saved.record["model"].get("form", "dense")
    if storage == "fused":
        from pnnh.convert.fuse import fold_all

        model = fold_all(model.double(), form)[0].float()
    model = saved.load_into(model).eval()
    if storage == "shared":
        import torch

        from pnnh.convert import fuse

        model = fuse(model, torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)), form=form)
    return model, shape


def _from_function(spec: str, changes: dict, home: str | None = None):
    """`home`: where a checkpoint was trained; only named when the module is not found, nothing is run from there."""
    from torch import nn

    if changes:
        raise UsageError(f"{spec} takes no {', '.join(changes)}; build the model as wanted inside the function")
    module, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m pnnh` has it
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        there = f"it was trained in {home}, run the command there or put that folder on PYTHONPATH" if home else ""
        raise UsageError(f"cannot import {spec!r}: {error}; {there or f'give {FORMS}'}") from error
    try:
        model = build if isinstance(build, nn.Module) else build()
    except TypeError as error:
        raise UsageError(f"{spec} cannot be called without arguments: {error}; name a function that can") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module")
    return model, _input_shape(model)


def _from_timm(name: str, pretrained: bool, kwargs: dict, image_size: int | None):
    import timm

    _register_ours()
    if not timm.is_model(name) and "/" not in name:
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"unknown model {name!r}{hint} MODEL is {FORMS}")
    try:
        sized = image_size is not None and (timm.get_pretrained_cfg(name) or _Free()).fixed_input_size
        model = timm.create_model(name, pretrained=pretrained, **kwargs, **({"img_size": image_size} if sized else {}))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{name} cannot be built: {str(error).splitlines()[0]}") from error
    return model, _input_shape(model, kwargs.get("in_chans"))


class _Free:
    """Stands in for a model without a default configuration."""

    fixed_input_size = False


def _register_ours() -> None:
    """Our names join timm's when this import runs."""
    try:
        import pnnh.models  # noqa: F401
    except ModuleNotFoundError as error:  # an installation without our models still reads timm's
        if not (error.name or "").startswith("pnnh"):
            raise


def _input_shape(model, in_chans: int | None = None) -> tuple[int, int, int]:
    """(C, H, W) from timm's configuration, else 3 x 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    return (in_chans or channels, height, width)
