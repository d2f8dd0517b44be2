"""Stop at the first loss that is not a number, and say which layer made it."""

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
        self._seen = torch.zeros((), dtype=torch.bool, pin_memory=device.type == "cuda")

    def is_bad(self, loss: Tensor) -> bool:
        """Whether this loss, or on an accelerator a recent one, was NaN or infinite."""
        self._bad |= ~torch.isfinite(loss.detach())
        self._seen.copy_(self._bad, non_blocking=True)
        return bool(self._seen)

    def was_bad(self) -> bool:
        """The same, certain: waits for the device."""
        return bool(self._bad)


@torch.no_grad()
def locate(model: nn.Module, images: Tensor) -> str | None:
    """One forward pass; which layer, in the order of the calls, is the first to put out NaN or infinity, if any."""
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
    own = [name for name, p in module.named_parameters() if not torch.isfinite(p).all()]
    state = f"its {own[0]} is not finite" if own else "its weights are finite, its output overflows"
    return f"first in {label}: {state}"


def _broken(output) -> bool:
    if isinstance(output, Tensor):
        return output.is_floating_point() and not bool(torch.isfinite(output).all())
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return any(_broken(value) for value in values)
