"""How a run is carried out, apart from what it learns: several processes, several passes, less memory.

Nothing here changes the update of a step, except by rounding and by what batch norm sees: its statistics are of the
images that pass through the model together (batch size / processes / passes). Layer and group norm do not notice.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError


@dataclass(frozen=True)
class DDP:
    """Every process holds the whole model; gradients are averaged (DistributedDataParallel).

    static_graph: promise that every step uses the same parameters; torch then orders its communication once.
    """

    static_graph: bool = False

    def wrap(self, model: nn.Module, example: Tensor) -> nn.Module:
        device = next(model.parameters()).device
        kind = nn.parallel.DistributedDataParallel
        known = inspect.signature(kind).parameters  # torch renamed it
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        ids = [device.index] if device.type == "cuda" else None
        return kind(model, device_ids=ids, static_graph=self.static_graph, **{buffers: False})

    def apart(self, wrapped: nn.Module) -> AbstractContextManager:
        """Inside, backward passes add up gradients without exchanging them."""
        return wrapped.no_sync()


@dataclass(frozen=True)
class FSDP2:
    """Parameters, gradients and optimiser state are spread over the processes and gathered unit by unit (fully_shard).

    A unit is an element of one of the model's top-level containers that is called: a stage of ours, with the coder its
    layers share, or a block of a timm model. The root takes the rest. Parameters travel in float32, under bf16 too.
    """

    def wrap(self, model: nn.Module, example: Tensor) -> nn.Module:
        from torch.distributed.fsdp import fully_shard

        model.to(memory_format=torch.contiguous_format)  # it shards no other; images may still be channels_last
        for unit in units(model, example):
            fully_shard(unit)
        return fully_shard(model)

    @contextmanager
    def apart(self, wrapped: nn.Module) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(False)
        yield
        wrapped.set_requires_gradient_sync(True)


@dataclass(frozen=True)
class Execution:
    """parallel: how several processes hold one model; unused on one.

    accumulate: passes in which a process works through its share of a batch.
    checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    parallel: DDP | FSDP2 = field(default_factory=DDP)
    accumulate: int = 1
    checkpointing: bool = False

    def check(self, batch_size: int, processes: int) -> None:
        """Raises UsageError unless the batch divides evenly."""
        parts = self.accumulate * processes
        if self.accumulate < 1:
            raise UsageError(f"accumulate {self.accumulate} must be at least 1")
        if batch_size % parts:
            way_out = f"take a multiple of {parts}, e.g. {max(1, round(batch_size / parts)) * parts}"
            raise UsageError(
                f"batch size {batch_size} is not divisible among {processes} process(es) x {self.accumulate} "
                f"pass(es); {way_out}"
            )

    def prepare(self, model: nn.Module) -> None:
        """Switch checkpointing on where it is asked for."""
        if not self.checkpointing:
            return
        if not hasattr(model, "set_grad_checkpointing"):
            raise UsageError(f"{type(model).__name__} has no set_grad_checkpointing(); drop checkpointing")
        model.set_grad_checkpointing(True)

    def exchange(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager:
        """The context of one pass: gradients are exchanged in the last one only."""
        return nullcontext() if last else self.parallel.apart(wrapped)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"parallel": {"type": type(self.parallel).__name__} | asdict(self.parallel)}


@torch.no_grad()
def units(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """The elements, themselves made of modules, of the containers (Sequential, ModuleList) at the top of `model`.

    Only those that are called: a coder whose weights others use would never be gathered. One forward pass tells.
    """
    containers = [child for child in model.children() if isinstance(child, (nn.Sequential, nn.ModuleList))]
    elements = [element for container in containers for element in container.children() if any(element.children())]
    called: set[nn.Module] = set()
    handles = [element.register_forward_hook(lambda module, *_: called.add(module)) for element in elements]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, was in training.items():
            module.training = was
    return [unit for unit in elements if unit in called and any(p.numel() for p in unit.parameters())]


def whole(value: Tensor) -> Tensor:
    """A tensor that is spread over the processes, put together (all must ask); any other as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def spread(value: Tensor, like: Tensor) -> Tensor:
    """The inverse: `value`, spread as `like` is."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def norm_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of the batch norms in `model`."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in found if value is not None]
