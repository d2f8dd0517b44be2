"""`bench`: several models against the first one: sizes counted, times measured in interleaved pairs with a control."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.bench.cases import WORKS, Inference, Setting, TrainingStep
from pnnh.bench.clock import Ratio, Timing, paired
from pnnh.cost import cost, peak_bytes, tensor_bytes
from pnnh.load import load_model

ENOUGH_PAIRS = 30
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Entry:
    """One model. `sizes`: counted figures. `times`: by work, against the first model (of the first: its own copy)."""

    model: str
    sizes: Mapping[str, float | None]
    times: Mapping[str, Timing]


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measured under one setting. The first entry is the yardstick, its times are the control."""

    setting: Setting
    entries: tuple[Entry, ...]

    def __repr__(self) -> str:
        return f"Benchmark({', '.join(entry.model for entry in self.entries)}: {self.setting})"

    @property
    def busy(self) -> float:
        """CPU seconds per wall second of the most disturbed timing; below 0.95 on a CPU the machine was not quiet."""
        return round(min(timing.busy for entry in self.entries for timing in entry.times.values()), 3)

    def verdict(self, entry: Entry, work: str) -> str:
        """ "faster" or "slower" only where the interval excludes 1, the control's holds 1, and the pairs suffice."""
        return verdict(entry.times[work].wall, self.entries[0].times[work].wall)

    def rows(self) -> list[dict[str, Any]]:
        """One row per model: sizes, then for each work the ratio with its interval, pairs, verdict, ms and img/s."""
        first, *others = self.entries
        yardstick = {"model": first.model} | dict(first.sizes) | self._times(first)
        for work in WORKS:
            yardstick |= {f"{work}_time": 1.0, f"{work}_low": None, f"{work}_high": None, f"{work}_pairs": None}
            yardstick |= {f"{work}_cpu_time": 1.0, f"{work}_verdict": None}
        return [yardstick, *({"model": entry.model} | dict(entry.sizes) | self._times(entry) for entry in others)]

    @property
    def control(self) -> dict[str, Any]:
        """The row of the first model against its own copy: how far from 1 a ratio gets without a difference."""
        first = self.entries[0]
        return {"model": f"{first.model} (control)"} | dict(first.sizes) | self._times(first)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        facts = {"title": str(self.setting), "setting": asdict(self.setting), "busy": self.busy}
        return facts | {"rows": self.rows(), "control": self.control}

    def _times(self, entry: Entry) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for work, timing in entry.times.items():
            wall, images = timing.wall, 1 if work == "latency" else self.setting.batch_size
            row |= {
                f"{work}_time": round(wall.ratio, 4),
                f"{work}_low": round(wall.low, 4),
                f"{work}_high": round(wall.high, 4),
                f"{work}_pairs": wall.pairs,
                f"{work}_cpu_time": round(timing.cpu.ratio, 4),
                f"{work}_verdict": "control" if entry is self.entries[0] else self.verdict(entry, work),
                f"{work}_ms": round(1e3 * wall.median_b, 3),
                f"{work}_img/s": round(images / wall.median_b, 1),
            }
        return row


def bench(
    models: Sequence[str] | Mapping[str, nn.Module], setting: Setting | None = None, *, tell: Tell = lambda line: None
) -> Benchmark:
    """Time every model against the first one, interleaved in this process; a copy of the first is the control.

    The models are copied and left as found. Ratios above 1 mean slower than the first model.

    Args:
        models: names that `load_model` takes, or networks by name; the first is the yardstick.
        setting: images, device, arithmetic and clock; default: 128 images of the first model's own size on the CPU.
        tell: gets a line of progress before each timing.

    Returns:
        Benchmark: `.rows()` has one row per model, with milliseconds, images a second, ratios and their intervals.

    Raises:
        UsageError: no model, or a setting that cannot be meant. RunError: a model that does not run under it.
    """
    nets = dict(models) if isinstance(models, Mapping) else {name: load_model(name) for name in models}
    if not nets:
        raise UsageError("bench needs at least one model; the first is the yardstick of the others")
    setting = setting or Setting(input_size=_own_size(next(iter(nets.values()))))
    if setting.batch_size < 2:
        raise UsageError(f"batch_size {setting.batch_size} must be at least 2: batch norm needs two images")
    (first, reference), *others = nets.items()
    devices = [torch.device(setting.device)] if setting.device.startswith("cuda") else []
    with _fresh_compiler(setting.compiled), torch.random.fork_rng(devices):
        sizes = {name: _sizes(name, model, setting) for name, model in nets.items()}
        times = {first: _times(first, reference, f"{first} (control)", reference, setting, tell)}
        times |= {name: _times(first, reference, name, model, setting, tell) for name, model in others}
    return Benchmark(setting, tuple(Entry(name, sizes[name], times[name]) for name in nets))


def verdict(ratio: Ratio, control: Ratio) -> str:
    """What a ratio supports: faster, slower or no difference; or why nothing is said."""
    if ratio.pairs < ENOUGH_PAIRS:
        return "too few pairs"
    if control.differs:
        return "control off"
    return ("slower" if ratio.ratio > 1 else "faster") if ratio.differs else "no difference"


def _own_size(model: nn.Module) -> tuple[int, int, int]:
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("input_size") or (3, 224, 224)


def _times(
    first: str, reference: nn.Module, name: str, model: nn.Module, setting: Setting, tell: Tell
) -> dict[str, Timing]:
    error = setting.error if setting.pairs >= ENOUGH_PAIRS else math.inf
    clock = {"pairs": setting.pairs, "rounds": min(setting.rounds, setting.pairs), "repeats": setting.repeats}
    times = {}
    for work, make in WORKS.items():
        tell(f"timing {work}: {name} against {first}")
        a, b = (lambda net=net, make=make: make(net, setting) for net in (reference, model))
        times[work] = paired(a, b, device=torch.device(setting.device), error=error, **clock)
    return times


def _sizes(name: str, model: nn.Module, setting: Setting) -> dict[str, float | None]:
    """Counted figures, and the compiler's seconds; memory is counted where operators are seen one by one."""
    device = torch.device(setting.device)
    visible = not setting.compiled or device.type == "cuda"
    try:
        counted = cost(model, setting.input_size)
        start = time.perf_counter()
        step, batch = _warm(TrainingStep(model, setting)), _warm(Inference(model, setting))
        cold = time.perf_counter() - start
    except (UsageError, RunError):
        raise
    except Exception as error:
        line = (str(error).splitlines() or [""])[0][:200]
        raise RunError(f"{name} cannot be timed with {setting}: {type(error).__name__}: {line}") from error
    start = time.perf_counter()
    train_peak, infer_peak = (peak_bytes(work, device) if visible else work() for work in (step, batch))
    warm = time.perf_counter() - start
    return {
        "params": counted.num_params,
        "macs": counted.macs,
        "flops": 2 * counted.macs,
        "train_peak_mb": _mb(train_peak),
        "infer_peak_mb": _mb(infer_peak),
        "checkpoint_mb": _mb(tensor_bytes(model.state_dict().values())),
        "optimizer_mb": _mb(tensor_bytes(v for state in step.optimizer.state.values() for v in state.values())),
        "compile_s": round(cold - warm, 1) if setting.compiled else None,
    }


def _warm(work):
    work()
    return work


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 3)


@contextlib.contextmanager
def _fresh_compiler(compiled: bool) -> Iterator[None]:
    """Compile from nothing, then keep what was compiled for every further copy of the same model."""
    if not compiled:
        yield
        return
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    with fresh_cache(), torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch._dynamo.reset()
