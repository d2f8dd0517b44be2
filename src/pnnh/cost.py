"""What a network costs: parameters, multiply-accumulates and memory, all counted from the operators that run.

Shared parameters count once, their work at every use. Nothing is sampled: on the meta device the operators run without
arithmetic and without memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pnnh._modules import copied


@dataclass(frozen=True)
class Cost:
    """num_params: parameters. macs: multiply-accumulates of one image (FLOPs are twice that).

    activation_bytes: the largest sum of live activation buffers of one image, see `plan_memory`.
    """

    num_params: int
    macs: int
    activation_bytes: int

    def rows(self) -> list[dict]:
        return [asdict(self)]


@dataclass(frozen=True)
class Step:
    """One operator: what it allocates, and all that is live while it runs (bytes, for the example's batch)."""

    op: str
    new_bytes: int
    live_bytes: int
    live_buffers: int


@dataclass(frozen=True)
class MemoryPlan:
    """All steps in order, the input first. `peak_bytes` and `peak_buffers` are the largest of each."""

    steps: tuple[Step, ...]

    @property
    def peak_bytes(self) -> int:
        return max(step.live_bytes for step in self.steps)

    @property
    def peak_buffers(self) -> int:
        return max(step.live_buffers for step in self.steps)

    def rows(self) -> list[dict]:
        return [asdict(step) for step in self.steps]

    def __repr__(self) -> str:
        return f"MemoryPlan({len(self.steps)} steps, peak {self.peak_bytes} bytes in {self.peak_buffers} buffers)"


class _Recorder(TorchDispatchMode):
    """Notes every operator: name, whether it is elementwise, the buffers it reads and the one it makes, with sizes."""

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.buffers: dict[int, int] = {}  # storage -> its number; weights are not among them
        self.calls: list[tuple[str, bool, list[int], int | None]] = []
        self.sizes: list[int] = []
        for tensor in inputs:
            self.note("input", False, [], [tensor])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = self.numbers((args, kwargs))
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        self.note(name, torch.Tag.pointwise in func.tags or "batch_norm" in name, reads, result)
        return result

    def numbers(self, values: object) -> list[int]:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        return [self.buffers[key] for key in map(_storage, tensors) if key in self.buffers]

    def note(self, name: str, elementwise: bool, reads: list[int], result: object) -> None:
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        fresh = [tensor for tensor in tensors if tensor.numel() and _storage(tensor) not in self.buffers]
        for tensor in fresh or [None]:
            made = None
            if tensor is not None:
                storage, made = tensor.untyped_storage(), len(self.sizes)
                self.sizes.append(storage.nbytes())
                self.buffers[storage._cdata] = made
                weakref.finalize(storage, self.buffers.pop, storage._cdata, None)
            self.calls.append((name, elementwise, reads, made))

    def plan(self, outputs: list[int]) -> MemoryPlan:
        """A buffer lives from the operator that makes it to its last reader; the outputs are read at the very end.

        An elementwise operator writes over an operand of the same size that nothing reads later, as runtimes do.
        """
        death = dict.fromkeys(outputs, len(self.calls))
        for index, (*_, reads, made) in enumerate(self.calls):
            for buffer in (*reads, *([] if made is None else [made])):
                death[buffer] = max(death.get(buffer, 0), index)
        owner, birth = list(range(len(self.sizes))), {}
        for index, (_, elementwise, reads, made) in enumerate(self.calls):
            if made is None:
                continue
            dying = [owner[item] for item in reads if elementwise and death[owner[item]] == index]
            owner[made] = next((item for item in dying if self.sizes[item] == self.sizes[made]), made)
            death[owner[made]] = max(death[owner[made]], death[made])
            birth.setdefault(owner[made], index)
        floor, steps = max(self.sizes) / 1000, []
        for index, (name, _, _, made) in enumerate(self.calls):
            live = [self.sizes[item] for item, start in birth.items() if start <= index <= death[item]]
            new = self.sizes[made] if made is not None and owner[made] == made else 0
            steps.append(Step(name, new, sum(live), sum(size > floor for size in live)))
        return MemoryPlan(tuple(steps))


def plan_memory(model: nn.Module, example: Tensor | Sequence[Tensor]) -> MemoryPlan:
    """Activation memory of one inference of `model` on `example` (batch first), operator by operator.

    Views own nothing; norms and elementwise operators write in place where they can. Weights are not counted, and only
    buffers larger than 1 / 1000 of the largest count as live buffers.
    """
    return _recorded(model, example)[0]


def measure_cost(model: nn.Module, example: Tensor | Sequence[Tensor]) -> Cost:
    """Cost of one image like those of `example`, one tensor or several, batch first."""
    plan, macs = _recorded(model, example)
    batch = len(_arguments(example)[0])
    return Cost(count_params(model), macs // batch, plan.peak_bytes // batch)


def cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Cost of `model` on one image [C, H, W] = `input_size`."""
    return measure_cost(model, torch.empty(1, *input_size, device="meta"))


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _recorded(model: nn.Module, example: Tensor | Sequence[Tensor]) -> tuple[MemoryPlan, int]:
    """Memory and multiply-accumulates of one call on the meta device; where an operator cannot run there, for real."""
    arguments = _arguments(example)
    try:
        return _run(copied(model, device="meta"), [item.to("meta") for item in arguments])
    except (RuntimeError, NotImplementedError):  # an operator without a meta kernel, or a constant on its own device
        return _run(copied(model), arguments)


def _run(model: nn.Module, arguments: Sequence[Tensor]) -> tuple[MemoryPlan, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, _Recorder(arguments) as recorder, torch.no_grad():
        outputs = model.eval()(*arguments)
        return recorder.plan(recorder.numbers(outputs)), counter.get_total_flops() // 2


def _arguments(example: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (example,) if isinstance(example, Tensor) else tuple(example)


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
        before = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf) not in self._known | before:
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


def tensor_bytes(values: Iterable[object]) -> int:
    """Bytes of the tensors among `values`, those that share memory once."""
    tensors = {value.data_ptr(): value for value in values if isinstance(value, Tensor) and value.numel()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
