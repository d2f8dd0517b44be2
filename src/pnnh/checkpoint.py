"""Checkpoint folders: safetensors and JSON files that are read whole or refused.

`manifest.json` is written last and holds the SHA-256 of every other file, so that a flipped bit (which neither torch
nor safetensors notices), a missing file and an unfinished folder are all found. Nothing in a folder is executed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from pnnh._errors import RunError, UsageError
from pnnh._files import check_writable, sha256_bytes, sync_folder, write_bytes

FORMAT = "pnnh checkpoint 2"
SHOWN = 5  # entries that a refusal lists by name
Tensors = Mapping[str, Tensor]


class Damaged(RunError):
    """A checkpoint folder that is incomplete, altered or not one of ours; the message says which file and why."""


class Outdated(Damaged):
    """A checkpoint folder of a former format."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model as read from its folder: `tensors` is its state_dict, `record` the content of record.json."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the weights into `model` and return it. Raises RunError naming the entries that do not fit."""
        return fit_weights(model, self.tensors, "the checkpoint")


def save(folder: str | PathLike[str], model: nn.Module | Tensors, record: Mapping[str, Any]) -> Path:
    """Write model.safetensors, record.json and, last, manifest.json into `folder`, which may exist.

    model: a module, or its state_dict. Raises UsageError if the folder cannot be written.
    """
    folder = Path(folder)
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    _write_all(folder, {"model.safetensors": tensors}, {"record.json": record})
    return folder


def load(folder: str | PathLike[str]) -> Checkpoint:
    """Read what `save` wrote. Raises UsageError if there is no such folder, Damaged if it is not whole."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; give one that `pnnh train --out` wrote")
    tensors, values = read_folder(folder)
    if "model.safetensors" not in tensors or "record.json" not in values:
        raise Damaged(f"{folder} is no trained model: model.safetensors or record.json is not in its manifest")
    return Checkpoint(tensors["model.safetensors"], values["record.json"])


def fit_weights(model: nn.Module, tensors: Tensors, source: str) -> nn.Module:
    """Copy `tensors` into `model`, each entry of its state_dict exactly once, and return the model.

    The prefixes "module." (DataParallel) and "_orig_mod." (torch.compile) are left out of account on both sides. Of
    tensors that the model shares between several names one is enough. Raises RunError naming the entries that do not
    fit, before anything is copied; `source` is what the message calls the tensors, e.g. a file's name.
    """
    own = {_bare(name): (name, value) for name, value in model.state_dict().items()}
    given = {_bare(name): value for name, value in tensors.items()}
    if len(given) != len(tensors) or len(own) != len(model.state_dict()):  # the prefixes tell some names apart
        own = {name: (name, value) for name, value in model.state_dict().items()}
        given = dict(tensors)
    shared = {_place(value) for name, (_, value) in own.items() if name in given and value.data_ptr()}
    faults = [f"{name!r} is missing in the model" for name in given.keys() - own.keys()]
    for name, (_, value) in own.items():
        if name in given and given[name].shape != value.shape:
            shapes = f"{tuple(given[name].shape)} in {source}, {tuple(value.shape)} in the model"
            faults.append(f"{name!r} is {shapes}")
        elif name not in given and _place(value) not in shared:
            faults.append(f"{name!r} is missing in {source}")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise RunError(f"{source} does not fit {type(model).__name__}: {'; '.join(sorted(faults)[:SHOWN])}{more}")
    model.load_state_dict({own[name][0]: value for name, value in given.items()}, strict=False)
    return model


def write_folder(folder: Path, tensors: Mapping[str, Tensors], values: Mapping[str, Any]) -> None:
    """Write a new folder under a temporary name and rename it: at every instant it is absent or whole."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_all(partial, tensors, values)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}; earlier checkpoints are untouched") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """All tensors and values that the manifest names, by file, each file checked. Raises Damaged."""
    tensors, values = {}, {}
    for name, digest in _manifest(folder).items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror}, though the manifest names it") from None
        if sha256_bytes(data) != digest:
            raise Damaged(f"{path} was changed after it was written, or cut short")
        try:
            if path.suffix == ".safetensors":
                tensors[name] = _finite(path, parse_safetensors(data))
            else:
                values[name] = json.loads(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise Damaged(f"{path} is not a readable {path.suffix[1:]} file: {error}") from None
    return tensors, values


def _manifest(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, as the manifest says; only names of files in `folder` itself are accepted."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{folder} has no manifest.json: it was never finished, or is not one of ours") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from None
    version, files = (manifest.get("format"), manifest.get("files")) if isinstance(manifest, dict) else (None, None)
    if version == "pnnh checkpoint 1":
        reason = f"was written by an older pnnh (format {version!r}, this one reads {FORMAT!r})"
        raise Outdated(f"{folder} {reason}; train again, or load its model.safetensors with --weights")
    if version != FORMAT or not isinstance(files, dict):
        raise Damaged(f"{path} is not a {FORMAT!r}")
    if outside := [name for name in files if Path(name).name != name]:
        raise Damaged(f"{path} names a file outside the folder: {outside[0]!r}")
    return files


def _write_all(folder: Path, tensors: Mapping[str, Tensors], values: Mapping[str, Any]) -> None:
    """Files first, the manifest last."""
    files = {name: format_safetensors(_independent(entries)) for name, entries in tensors.items()}
    files |= {name: _json(value) for name, value in values.items()}
    for name, data in files.items():
        write_bytes(folder / name, data)
    digests = {name: sha256_bytes(data) for name, data in files.items()}
    write_bytes(folder / "manifest.json", _json({"format": FORMAT, "files": digests}))
    sync_folder(folder)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _finite(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Damaged(f"{path}: tensor {name!r} holds NaN or infinity")
    return tensors


def _independent(entries: Tensors) -> dict[str, Tensor]:
    """On the CPU, contiguous, each with memory of its own (safetensors refuses shared memory)."""
    flat, owners = {}, set()
    for name, value in entries.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in owners:
            value = value.clone()
        owners.add(value.untyped_storage().data_ptr())
        flat[name] = value
    return flat


def _bare(name: str) -> str:
    """The name of a tensor without the wrappers' prefixes: "_orig_mod." anywhere, "module." in front."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _place(value: Tensor) -> tuple[int, tuple[int, ...], int]:
    """Equal for two names of one tensor."""
    return value.data_ptr(), tuple(value.shape), value.storage_offset()
