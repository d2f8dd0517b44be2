"""Tensor memory, counted rather than sampled: every storage that lives while a piece of code runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the block, `.now` and `.peak` are the bytes of storages that operators made and that still live.

    Scratch space inside a kernel is not seen, nor are tensors made before the block.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {id_ for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) for id_ in [_key(leaf)]}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _key(leaf) not in self._known | before:
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that one call of `work` adds: counted by the allocator on CUDA, by `LiveBytes` elsewhere."""
    if device.type != "cuda":
        with LiveBytes() as memory:
            work()
        return memory.peak
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of the tensors a checkpoint holds, shared ones once; the file's header is extra."""
    return _bytes(model.state_dict().values())


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimiser's state (after its first step)."""
    return _bytes(value for state in optimizer.state.values() for value in state.values())


def _bytes(values) -> int:
    tensors = {value.data_ptr(): value for value in values if isinstance(value, torch.Tensor) and value.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
