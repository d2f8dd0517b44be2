"""What must be saved to go on from a step of a run so that the result is bitwise that of an uninterrupted run."""

from __future__ import annotations

import torch
from torch import Tensor

from pnnh._errors import RunError
from pnnh.train.run import Run


def state(run: Run) -> dict[str, Tensor]:
    """Every tensor of the run, by name, called by all processes. Raises NotFinite rather than give a broken state.

    Nothing random is in it: what is drawn in a step follows from the seed and the step.
    """
    run.check_finite()
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    if run.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in run.ema.module.state_dict().items()}
    for index, slots in run.optimizer.state_dict()["state"].items():
        slots = {key: torch.as_tensor(value) for key, value in slots.items() if value is not None}
        tensors |= {f"optimizer.{index}.{key}": value for key, value in slots.items()}
    for index, group in enumerate(run.optimizer.param_groups):
        tensors |= {f"groups.{index}.step": torch.as_tensor(group["step"])} if "step" in group else {}  # LAMB's
    loss, correct = run.processes.sum(run.loss_sum), run.processes.sum(run.correct)
    return tensors | {"sums.loss": loss, "sums.correct": correct}


def restore(run: Run, tensors: dict[str, Tensor], step: int) -> None:
    """Go on from a `state()` after `step` updates, by any number of processes. Raises RunError if it does not fit."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = value
    try:
        run.model.load_state_dict(parts["model"])
        if run.ema is not None:
            run.ema.module.load_state_dict(parts["ema"])
        _restore_optimizer(run.optimizer, parts.get("optimizer", {}), parts.get("groups", {}))
        if run.processes.rank == 0:  # the sums are of all processes
            run.loss_sum.copy_(parts["sums"]["loss"])
            run.correct.copy_(parts["sums"]["correct"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"the saved state does not fit this run: {str(error).splitlines()[0]}") from None
    run.step = step


def _restore_optimizer(optimizer: torch.optim.Optimizer, slots: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor | int]] = {}
    for name, value in slots.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)  # in the parameter's own memory format
        state.setdefault(int(index), {})[key] = _as_saved(value)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    for name, value in counts.items():
        optimizer.param_groups[int(name.partition(".")[0])]["step"] = _as_saved(value)


def _as_saved(value: Tensor) -> Tensor | int:
    """A flag or a count that was no tensor in the optimiser is none again; every other tensor gets its own memory."""
    return value.item() if value.ndim == 0 and not value.is_floating_point() else value.clone()
