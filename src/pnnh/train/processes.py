"""One process or many. They are started by `torchrun` or `accelerate launch`, which accelerate understands both.

Every process has a share of each batch and of the test images; all hold the same model after every update; the first
one (rank 0) reads and writes files. What they must agree on, they agree on here.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from pnnh._errors import UsageError

T = TypeVar("T")


class Alone:
    """The only process: it agrees with itself at once. `rank` is its number, `size` how many there are."""

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
        """Do `work` in the first process only; its result, or its error, is everybody's."""
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` in every process, in the first one before the others: they find what it fetched or decoded."""
        return work()

    def share(self, count: int) -> slice:
        """This process's part of a batch of `count` images."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


class Team(Alone):
    """One of several processes, each on `device`; what they tell each other beside tensors goes over gloo."""

    def __init__(self, device: torch.device) -> None:
        from accelerate import PartialState
        from torch import distributed

        state = PartialState(cpu=device.type == "cpu")
        self.rank, self.size, self._distributed = state.process_index, state.num_processes, distributed
        self._talk = distributed.new_group(backend="gloo")  # flags without waiting for the accelerator
        atexit.register(lambda: distributed.is_initialized() and distributed.destroy_process_group())

    def any(self, flag: bool) -> bool:
        asked = torch.tensor([flag], dtype=torch.uint8)
        self._distributed.all_reduce(asked, self._distributed.ReduceOp.MAX, group=self._talk)
        return bool(asked)

    def sum(self, value: Tensor) -> Tensor:
        total = value.clone()
        self._distributed.all_reduce(total)
        return total

    def average_(self, values: list[Tensor]) -> None:
        if not values:
            return
        flat = torch.cat([value.reshape(-1) for value in values])
        self._distributed.all_reduce(flat)
        flat /= self.size
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
        told: list = [None, None]
        if self.rank == 0:
            try:
                told[0] = work()
            except Exception as error:
                told[1] = error
        self._distributed.broadcast_object_list(told, src=0, group=self._talk)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        done: list[T] = []
        self.first(lambda: done.append(work()))
        return done[0] if done else work()


@functools.cache
def join(device_type: str = "cpu") -> Alone:
    """This process among those it was started with: `Alone`, or a `Team` under torchrun or accelerate launch."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Alone()
    try:
        return Team(torch.device(device_type))
    except ImportError:
        raise UsageError("several processes need accelerate: pip install 'pnnh[scale]'") from None
