"""What one process, or several that train one model together, must agree on.

Several processes are started by `torchrun` or `accelerate launch`. Each has a share of every batch and of the test
images, all hold the same model after every update, and the first one (rank 0) reads and writes files.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from pnnh._errors import UsageError

T = TypeVar("T")


class Alone:
    """A single process. `rank` is its number, `size` the number of processes; `Team` does the same for several."""

    rank, size = 0, 1

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; the answer is the same in all."""
        return flag

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in all of them."""
        return value

    def average_(self, values: list[Tensor]) -> None:
        """Replace each of `values` by its mean over all processes."""

    def same_(self, values: Iterable[Tensor]) -> None:
        """Replace each of `values` by that of the first process."""

    def gather(self, value: T) -> list[T]:
        """The `value` of every process, in the order of their ranks, in all of them."""
        return [value]

    def first(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process only; every process gets its result, or its error."""
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` in every process, in the first one before the others, which find what it fetched or decoded."""
        return work()

    def share(self, count: int) -> slice:
        """This process's part of a batch of `count` images."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is trained; with several processes its backward pass averages the gradients."""
        return model

    def no_exchange(self, wrapped: nn.Module) -> AbstractContextManager:
        """Inside, backward passes of `wrap`'s model add up gradients without averaging them over the processes."""
        return nullcontext()


class Team(Alone):
    """One of several processes, each on its own device. Flags and objects travel over gloo, beside the tensors."""

    def __init__(self, device: torch.device) -> None:
        from accelerate import Accelerator, DistributedType
        from torch import distributed

        self._accelerator, self._distributed = Accelerator(cpu=device.type == "cpu"), distributed
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
        if self._accelerator.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
            kind = self._accelerator.distributed_type.value
            raise UsageError(f"{kind} is not for this loop, which needs the whole model in every process; use DDP")
        self._talk = distributed.new_group(backend="gloo")  # flags without waiting for the accelerator
        atexit.register(lambda: distributed.is_initialized() and distributed.destroy_process_group())

    def any(self, flag: bool) -> bool:
        asked = torch.tensor([flag], dtype=torch.uint8)
        self._distributed.all_reduce(asked, self._distributed.ReduceOp.MAX, group=self._talk)
        return bool(asked)

    def sum(self, value: Tensor) -> Tensor:
        return self._accelerator.reduce(value, "sum")

    def average_(self, values: list[Tensor]) -> None:
        if not values:
            return
        flat = self._accelerator.reduce(torch.cat([value.reshape(-1) for value in values]), "mean")
        for value, part in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))

    def same_(self, values: Iterable[Tensor]) -> None:
        for value in values:
            self._distributed.broadcast(value, 0)

    def gather(self, value: T) -> list[T]:
        values: list = [None] * self.size
        self._distributed.all_gather_object(values, value, group=self._talk)
        return values

    def first(self, work: Callable[[], T]) -> T:
        outcome: list = [None, None]  # result, error
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        self._distributed.broadcast_object_list(outcome, src=0, group=self._talk)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        done: list[T] = []
        self.first(lambda: done.append(work()))
        return done[0] if done else work()

    def wrap(self, model: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(model)

    def no_exchange(self, wrapped: nn.Module) -> AbstractContextManager:
        return self._accelerator.no_sync(wrapped)


@functools.cache
def join(device_type: str = "cpu") -> Alone:
    """The current process among those it was started with: `Alone`, or a `Team` under torchrun or accelerate launch."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Alone()
    try:
        return Team(torch.device(device_type))
    except ImportError:
        raise UsageError("several processes need accelerate: pip install 'pnnh[scale]'") from None
