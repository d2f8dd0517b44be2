"""How a run is carried out, apart from what it learns: passes per batch, less memory, compiled code."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pnnh._errors import UsageError

_log = logging.getLogger("pnnh")


@dataclass(frozen=True)
class Execution:
    """Nothing here changes the update of a step, except by rounding and by what batch norm sees.

    accumulate: passes in which a process works through its share of a batch. Statistics of batch norm are of the
        images that pass through the model together: batch size / processes / passes.
    checkpointing: compute activations again in the backward pass instead of keeping them.
    compile: torch.compile the model for training; the first step takes long.
    """

    accumulate: int = 1
    checkpointing: bool = False
    compile: bool = False

    def check(self, batch_size: int, processes: int, device: torch.device) -> None:
        """Raises UsageError unless the batch divides evenly and the model can be compiled where asked."""
        parts = self.accumulate * processes
        if self.accumulate < 1:
            raise UsageError(f"accumulate {self.accumulate} must be at least 1")
        if batch_size % parts:
            way_out = f"take a multiple of {parts}, e.g. {max(1, round(batch_size / parts)) * parts}"
            raise UsageError(
                f"batch size {batch_size} is not divisible among {processes} process(es) x {self.accumulate} "
                f"pass(es); {way_out}"
            )
        compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl")
        if self.compile and device.type == "cpu" and not any(map(shutil.which, filter(None, compilers))):
            raise UsageError("compile needs a C++ compiler for models on a CPU; install g++ or leave compile off")

    def prepare(self, model: nn.Module) -> None:
        """Switch checkpointing on where it is asked for."""
        if not self.checkpointing:
            return
        if not hasattr(model, "set_grad_checkpointing"):
            raise UsageError(f"{type(model).__name__} has no set_grad_checkpointing(); drop checkpointing")
        model.set_grad_checkpointing(True)

    def to_dict(self) -> dict[str, Any]:
        """The entries as a record holds them."""
        return asdict(self)


@functools.cache
def has_fast_bf16(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32 on this device; logs one warning where a CPU lacks the instructions."""
    if device_type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return True
    _log.warning("this CPU has no bfloat16 instructions (avx512_bf16, amx): --amp bf16 works, slower than fp32")
    return False
