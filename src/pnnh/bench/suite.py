"""A benchmark: several models against the first one, sizes counted, times paired, a roofline beside them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pnnh.bench.cases import WORKS, Inference, Setting, TrainingStep
from pnnh.bench.clock import Ratio, Timing, paired
from pnnh.bench.ledger import ledger
from pnnh.bench.roofline import Rates, measure_rates, roofline
from pnnh.cost import cost, peak_bytes, tensor_bytes

ENOUGH_PAIRS = 30
YARDSTICK = {"time": 1.0, "interval": "—", "pairs": "—", "cpu_time": 1.0, "verdict": "—"}

Named = tuple[str, nn.Module]


@dataclass(frozen=True)
class Report:
    """One setting. `models`: a row per model, times as ratios to the first; `control`: the first against its own copy.

    `rooflines`: model -> rows per phase and kind of operator of one training step; empty where compiled.
    `busy`: CPU seconds per wall second while timing.
    """

    models: tuple[dict[str, Any], ...]
    control: dict[str, Any]
    setting: Setting
    rates: Rates
    rooflines: dict[str, list[dict[str, Any]]]
    busy: float

    def rows(self) -> list[dict[str, Any]]:
        return list(self.models)


def bench(models: Sequence[Named], setting: Setting, tell: Callable = print) -> Report:
    """Time every model against the first one, interleaved in this process; a copy of the first is the control.

    A ratio above 1 means slower than the first model. `tell` gets a line of progress per timing.
    """
    (first, reference), *others = models
    device = torch.device(setting.device)
    rates = measure_rates(device, torch.bfloat16 if setting.amp == "bf16" else torch.float32)
    with _fresh_compiler(setting.compiled):
        sizes = {name: _sizes(model, setting) for name, model in models}
        control = _times(first, reference, (f"{first} (control)", reference), setting, tell)
        timings = {name: _times(first, reference, (name, model), setting, tell) for name, model in others}
    base = _columns(control, control, setting)
    base |= {f"{what}_{key}": value for what in WORKS for key, value in YARDSTICK.items()}
    rows = [{"model": first} | sizes[first] | base]
    for name, timing in timings.items():
        rows.append({"model": name} | sizes[name] | _columns(timing, control, setting))
    steps = {} if setting.compiled else {name: ledger(_warm(TrainingStep(model, setting))) for name, model in models}
    rooflines = {name: roofline(ops, rates) for name, ops in steps.items()}
    busy = min(timing.busy for pair in (control, *timings.values()) for timing in pair.values())
    controlled = {"model": f"{first} (control)"} | sizes[first] | _columns(control, control, setting)
    return Report(tuple(rows), controlled, setting, rates, rooflines, round(busy, 3))


def verdict(ratio: Ratio, control: Ratio) -> str:
    """A difference is claimed only where the interval excludes 1, the control's holds it, and the pairs suffice."""
    if ratio.pairs < ENOUGH_PAIRS:
        return "too few pairs"
    if control.differs:
        return "control off"
    return ("slower" if ratio.ratio > 1 else "faster") if ratio.differs else "no difference"


def _times(first: str, reference: nn.Module, other: Named, setting: Setting, tell: Callable) -> dict[str, Timing]:
    name, model = other
    error = setting.error if setting.pairs >= ENOUGH_PAIRS else math.inf
    clock = {"pairs": setting.pairs, "rounds": min(setting.rounds, setting.pairs), "repeats": setting.repeats}
    times = {}
    for what, make in WORKS.items():
        tell(f"timing {what}: {name} against {first}")
        a, b = (lambda net=net, make=make: make(net, setting) for net in (reference, model))
        times[what] = paired(a, b, device=torch.device(setting.device), error=error, **clock)
    return times


def _columns(times: dict[str, Timing], control: dict[str, Timing], setting: Setting) -> dict[str, Any]:
    row = {}
    for what, timing in times.items():
        wall, images = timing.wall, 1 if what == "latency" else setting.batch_size
        row |= {
            f"{what}_time": round(wall.ratio, 4),
            f"{what}_interval": f"{wall.low:.3f}-{wall.high:.3f}",
            f"{what}_pairs": wall.pairs,
            f"{what}_cpu_time": round(timing.cpu.ratio, 4),
            f"{what}_verdict": "control" if times is control else verdict(wall, control[what].wall),
            f"{what}_ms": round(1e3 * wall.median_b, 3),
            f"{what}_img/s": round(images / wall.median_b, 1),
        }
    return row


def _sizes(model: nn.Module, setting: Setting) -> dict[str, Any]:
    """Counted figures, and the compiler's seconds; memory is counted where operators are seen one by one."""
    counted, device = cost(model, setting.input_size), torch.device(setting.device)
    visible = not setting.compiled or device.type == "cuda"
    start = time.perf_counter()
    step, batch = _warm(TrainingStep(model, setting)), _warm(Inference(model, setting))
    cold = time.perf_counter() - start
    start = time.perf_counter()
    train_peak, infer_peak = (peak_bytes(work, device) for work in (step, batch)) if visible else (_run(step, batch))
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


def _run(*works: Callable[[], None]) -> tuple[None, ...]:
    return tuple(work() for work in works)


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
