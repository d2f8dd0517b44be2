"""Losses and weights that are NaN or infinite, and the layer where the first such value appears."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pnnh._errors import RunError


class NotFinite(RunError):
    """Training produced NaN or infinity; the message names the step and the layer."""


class Watch:
    """Looks at every loss without waiting for the device: immediate on a CPU, some steps late elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._bad = torch.zeros((), dtype=torch.bool, device=device)
        self._copy = torch.zeros((), dtype=torch.bool, pin_memory=device.type == "cuda")

    def look(self, loss: Tensor) -> None:
        self._bad |= ~torch.isfinite(loss.detach())
        self._copy.copy_(self._bad, non_blocking=True)

    def is_bad(self) -> bool:
        """Whether the last loss, or on an accelerator a recent one, was NaN or infinite."""
        return bool(self._copy)

    def was_bad(self) -> bool:
        """Whether any loss so far was NaN or infinite; waits for the device."""
        return bool(self._bad)


def broken_weight(model: nn.Module) -> str | None:
    """The first parameter or buffer that holds NaN or infinity, by name; waits for the device once."""
    entries = [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]
    if not entries or torch.stack([torch.isfinite(value).all() for _, value in entries]).all():
        return None
    return next(repr(name) for name, value in entries if not torch.isfinite(value).all())


@torch.no_grad()
def locate(model: nn.Module, images: Tensor) -> str | None:
    """One forward pass; the first layer, in the order of the calls, whose output holds NaN or infinity, if any."""
    first: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_hook(lambda m, _, out, path=path: first.append((path, m)) if _broken(out) else None)
        for path, module in model.named_modules()
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not first:
        return None
    path, module = first[0]
    label = f"layer {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
    names = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    state = f"its {names[0]} is not finite" if names else "its weights are finite, its output overflows"
    return f"first in {label}: {state}"


def _broken(output) -> bool:
    if isinstance(output, Tensor):
        return output.is_floating_point() and not bool(torch.isfinite(output).all())
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return any(_broken(value) for value in values)
