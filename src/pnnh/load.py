"""`load_model`: a network by name: a checkpoint folder, a model of timm's registry (ours included), or a function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pnnh import checkpoint
from pnnh._errors import RunError, UsageError

FORMS = "a timm name (resnet18, pnnh_resnet20, ...), a checkpoint folder, or module:function"
OF_TIMM = ("hf-hub:", "hf_hub:", "local-dir:")
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode on the CPU, and what is known of it.

    input_size: (C, H, W) of one image. record: what a checkpoint says of its training, else empty.
    trained: False for a registered model with random weights, None where only the user's function knows.
    """

    name: str
    model: nn.Module
    input_size: tuple[int, int, int]
    record: Mapping[str, Any]
    trained: bool | None


def load_model(
    name: str | PathLike[str],
    *,
    weights: str | PathLike[str] | None = None,
    image_size: int | None = None,
    trust: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """The network that `name` stands for, in eval mode on the CPU.

    Args:
        name: a folder with `record.json` and `model.safetensors`; a model of timm's registry, ours included; or
            `module:function`, where the function takes no arguments and returns an nn.Module.
        weights: a .safetensors file or a checkpoint folder, every name matched; "pretrained" for timm's own weights;
            "random" to say that none are meant. Default: a checkpoint's own, else random.
        image_size: side of the images, in pixels, for models that are built for one size.
        trust: build a checkpoint whose record names `module:function`. This runs the code of that module.
        kwargs: passed to timm (num_classes, in_chans, ...); refused for checkpoints and functions.

    Raises:
        UsageError: the name or file means nothing. RunError: the weights do not fit.
    """
    return open_model(name, weights=weights, image_size=image_size, trust=trust, **kwargs).model


def open_model(
    name: str | PathLike[str], *, weights: Any = None, image_size: int | None = None, trust: bool = False, **kwargs: Any
) -> Loaded:
    """`load_model` with what is known of the network: its input size, its record, whether it has been trained."""
    name = os.fspath(name)
    if not name.strip():
        raise UsageError(f"MODEL is empty; give {FORMS}")
    if image_size is not None and not 1 <= image_size <= LARGEST_SIDE:
        raise UsageError(f"image size {image_size} must be between 1 and {LARGEST_SIDE} pixels")
    if (Path(name) / "record.json").is_file():
        found = _from_checkpoint(Path(name), weights, trust, kwargs)
    elif Path(name).is_dir():
        raise UsageError(f"{name} is a folder without record.json, so no checkpoint of ours; give {FORMS}")
    elif ":" in name and not name.startswith(OF_TIMM):
        _refuse(name, weights, kwargs)
        found = Loaded(name, *_from_function(name), {}, None)
    else:
        found = Loaded(
            name, *_from_timm(name, weights == "pretrained", kwargs, image_size), {}, weights == "pretrained"
        )
    trained, size = found.trained, found.input_size
    if weights is not None and weights not in ("pretrained", "random"):
        load_weights(found.model, weights)
        trained = True
    if image_size is not None:
        size = (size[0], image_size, image_size)
    return Loaded(found.name, found.model.eval(), size, found.record, trained)


def load_weights(model: nn.Module, file: str | PathLike[str]) -> None:
    """Load a .safetensors file or a checkpoint folder into `model`, every name matched, wrappers' prefixes left out.

    Raises:
        UsageError: there is no such file. RunError: names or shapes differ, each named.
    """
    checkpoint.fit_weights(model, _read(Path(file)), str(file))


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (file / "record.json").is_file():
        return checkpoint.load(file).tensors
    if not file.is_file():
        raise UsageError(f"no weights file at {file}; give a .safetensors file, a checkpoint folder or 'pretrained'")
    if file.suffix != ".safetensors":
        raise UsageError(f"weights {file.name!r} are not .safetensors; pickled checkpoints are not read, convert them")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} cannot be read as .safetensors: {_first_line(error)}") from error


def _refuse(name: str, weights: Any, kwargs: Mapping[str, Any]) -> None:
    """Checkpoints and functions build their network themselves."""
    if kwargs:
        raise UsageError(f"{name} knows its own {', '.join(kwargs)}; drop the option or name a timm model")
    if weights == "pretrained":
        raise UsageError(f"weights 'pretrained' are timm's, and {name} is no timm name; drop --weights or give a file")


def _from_checkpoint(folder: Path, weights: Any, trust: bool, kwargs: Mapping[str, Any]) -> Loaded:
    """Built as the record says, weights checked against their hashes; a fused checkpoint comes back fused."""
    _refuse(str(folder), weights, kwargs)
    saved = checkpoint.load(folder)
    try:
        name, arguments = saved.record["model"]["name"], dict(saved.record["model"].get("kwargs") or {})
        form = saved.record["model"].get("form")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f'{folder}/record.json has no "model": {{"name": ..., "kwargs": ...}}') from error
    if trust and ":" in str(name):
        model, size = _from_function(name)
    else:
        _check_registered(folder, name, arguments)
        model, size = _from_timm(name, False, arguments, None)
    data = saved.record.get("data") or {}
    side = data.get("image_size")
    size = (data.get("channels", size[0]), side or size[1], side or size[2])
    if saved.record["model"].get("storage") == "fused":
        from pnnh.convert.fuse import as_fused

        model = as_fused(model, form)
    if weights is None:
        model = saved.load_into(model)
    return Loaded(str(folder), model, size, saved.record, weights != "random")


def _check_registered(folder: Path, name: Any, arguments: Mapping[str, Any]) -> None:
    """Raises UsageError unless a record names a model of the registry, and arguments that read no other file."""
    import timm

    import pnnh.models  # noqa: F401 - our names join timm's registry

    if not isinstance(name, str) or not timm.is_model(name):
        raise UsageError(
            f"{folder} names {name!r}, which is no registered model, and code that a file names is not run; give the "
            f"function yourself, as `{name} --weights {folder}`, or --trust if you know the folder"
        )
    if unsafe := sorted({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"} & {*arguments}):
        raise UsageError(f"{folder}/record.json asks for {', '.join(unsafe)}, which would read other files; drop them")


def _from_function(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """What `module:function` returns; modules of the current folder are found, as with `python -m`."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    build = _guarded(f"cannot import {name!r}", lambda: getattr(importlib.import_module(module), attribute))
    if not isinstance(build, nn.Module):
        try:
            inspect.signature(build).bind()
        except TypeError as error:
            raise UsageError(f"{name} cannot be called without arguments: {error}; name a function that can") from error
        except ValueError:  # a built-in function does not tell its arguments
            pass
        build = _guarded(f"{name} failed", build)
    if not isinstance(build, nn.Module):
        raise UsageError(f"{name} returned {type(build).__name__}, not a torch.nn.Module")
    return build, _input_size(build)


def _guarded(what: str, action: Callable[[], Any]) -> Any:
    """The result of the user's code; its errors, `exit()` among them, become one line."""
    try:
        return action()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise UsageError(f"{what}: {type(error).__name__}: {_first_line(error)}") from error


def _from_timm(
    name: str, pretrained: bool, kwargs: Mapping[str, Any], image_size: int | None
) -> tuple[nn.Module, tuple[int, int, int]]:
    import timm

    import pnnh.models  # noqa: F401 - our names join timm's registry

    if not timm.is_model(name) and "/" not in name and not name.startswith(OF_TIMM):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UsageError(f"unknown model {name!r}; {hint}MODEL is {FORMS}")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        sized = {"img_size": image_size} if image_size and config is not None and config.fixed_input_size else {}
        model = timm.create_model(name, pretrained=pretrained, **kwargs, **sized)
    except Exception as error:
        raise UsageError(f"{name} cannot be built: {_first_line(error)}") from error
    return model, _input_size(model, kwargs.get("in_chans"))


def _input_size(model: nn.Module, in_chans: int | None = None) -> tuple[int, int, int]:
    """(C, H, W) from timm's configuration, else 3 x 224 x 224."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    return (in_chans or channels, height, width)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]
