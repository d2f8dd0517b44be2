"""Folders of tensors that are either whole or refused: safetensors only, each tensor hashed, the manifest last.

Neither torch nor safetensors notices a flipped bit in a weight, so the manifest keeps a SHA-256 of every tensor
(with its name, dtype and shape) and of every JSON file. A folder without its manifest was never finished.
"""

from __future__ import annotations

import hashlib
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

FORMAT = "pnnh checkpoint 1"
Tensors = Mapping[str, Tensor]


class Damaged(RunError):
    """A checkpoint that is incomplete, altered or not one of ours; the message says which file and why."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained model as read from its folder: `tensors` is its state_dict, `record` how it came about."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the weights into `model`. Raises RunError naming the first entry that does not fit."""
        own = model.state_dict()
        for name in sorted(own.keys() | self.tensors.keys()):
            if name not in own or name not in self.tensors:
                where = "the model" if name not in own else "the checkpoint"
                raise RunError(f"{name!r} is missing in {where}: the checkpoint is of another architecture")
            if own[name].shape != self.tensors[name].shape:
                shapes = f"{tuple(self.tensors[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
                raise RunError(f"{name!r} is {shapes}: the checkpoint is of another architecture")
        model.load_state_dict(self.tensors)
        return model


def save(folder: str | PathLike[str], model: nn.Module | Tensors, record: Mapping[str, Any]) -> Path:
    """Write model.safetensors, record.json and, last, manifest.json into `folder`, which may exist.

    model: a module, or its state_dict.
    """
    folder = Path(folder)
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    check_writable(folder)
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
        _sync(folder.parent)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}; earlier checkpoints are untouched") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """All tensors and values the manifest names, each one checked. Raises Damaged."""
    tensors, values = {}, {}
    for name, entry in _manifest(folder).items():
        path = folder / name
        try:
            data = path.read_bytes()
            if "tensors" in entry:
                tensors[name] = _checked(path, data, entry)
            elif hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise Damaged(f"{path} was changed after it was written")
            else:
                values[name] = json.loads(data)
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror}, though the manifest names it") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Damaged(f"{folder / 'manifest.json'} says nothing usable about {name!r}") from None
    return tensors, values


def _manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says of each file; only names of files in `folder` itself are accepted."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{folder} has no manifest.json: it was never finished, or is not one of ours") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder / 'manifest.json'} cannot be read: {error}") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or manifest.get("format") != FORMAT:
        raise Damaged(f"{folder / 'manifest.json'} is not a {FORMAT!r}")
    if outside := [name for name in files if Path(name).name != name]:
        raise Damaged(f"{folder / 'manifest.json'} names a file outside the folder: {outside[0]!r}")
    return files


def _checked(path: Path, data: bytes, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    if len(data) != entry["bytes"]:
        raise Damaged(f"{path} has {len(data)} bytes instead of {entry['bytes']}: cut short or replaced")
    try:
        found = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"{path} is not a readable safetensors file: {error}") from None
    if found.keys() != entry["tensors"].keys():
        odd = sorted(found.keys() ^ entry["tensors"].keys())[0]
        raise Damaged(f"{path} and its manifest disagree about tensor {odd!r}")
    for name, tensor in found.items():
        if tensor_sha256(name, tensor) != entry["tensors"][name]:
            raise Damaged(f"{path}: tensor {name!r} was changed after it was written")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Damaged(f"{path}: tensor {name!r} holds NaN or infinity")
    return found


def _write_all(folder: Path, tensors: Mapping[str, Tensors], values: Mapping[str, Any]) -> None:
    """Files first, the manifest last; each written beside its place, synced and renamed."""
    files: dict[str, Any] = {}
    for name, entries in tensors.items():
        flat = _independent(entries)
        data = format_safetensors(flat)
        write_bytes(folder / name, data)
        hashes = {key: tensor_sha256(key, value) for key, value in flat.items()}
        files[name] = {"bytes": len(data), "tensors": hashes}
    for name, value in values.items():
        data = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
        write_bytes(folder / name, data)
        files[name] = {"sha256": hashlib.sha256(data).hexdigest()}
    write_bytes(folder / "manifest.json", (json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n").encode())
    _sync(folder)


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


def tensor_sha256(name: str, value: Tensor) -> str:
    """Hash of name, dtype, shape and bytes: swapped tensors of one shape differ too."""
    digest = hashlib.sha256(f"{name} {value.dtype} {tuple(value.shape)}".encode())
    digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """`path` holds its old content or all of `data`, whatever happens: write beside it, fsync, rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make `folder` and try a file in it, before hours of work depend on it. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / ".probe", b"probe")
        (folder / ".probe").unlink()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from None


def _sync(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
