"""The groups of parameters that an optimiser gets: every parameter is in exactly one, by a named rule."""

from __future__ import annotations

from typing import Any

from torch import nn

from pnnh._errors import UsageError


def param_groups(model: nn.Module, weight_decay: float, *, decay_norms: bool = False) -> list[dict[str, Any]]:
    """Groups for an optimiser, as dicts with `params`, `weight_decay`, `lr_scale` and `name`.

    A module with an attribute `lr_scale` (the coder, whose kernel receives the sum of a stage's gradients) owns a
    group with that scale and no decay: its own parameters, not its children's. One-dimensional parameters (norms,
    biases) do not decay unless `decay_norms`; all others do. The loop multiplies the
    learning rate by `lr_scale`.

    Raises UsageError if two owners disagree about a shared parameter or the model has nothing to train.
    """
    rule: dict[int, tuple[tuple[str, float, float], str]] = {}  # id(parameter) -> (rule, first name)
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        scale = getattr(module, "lr_scale", None)
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if not parameter.requires_grad:
                continue
            key = _rule(parameter, scale, weight_decay, decay_norms)
            if id(parameter) not in rule:
                rule[id(parameter)] = (key, name)
                groups.setdefault(key, []).append(parameter)
            elif rule[id(parameter)][0] != key:
                first = rule[id(parameter)]
                raise UsageError(f"two rules for one parameter: {first[1]} {first[0]}, {name} {key}; give it one owner")
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in rule]
    if missing or not groups:
        raise UsageError(f"parameters in no group: {missing}" if missing else "the model has no trainable parameter")
    return [
        {"params": params, "name": name, "lr_scale": scale, "weight_decay": decay}
        for (name, scale, decay), params in groups.items()
    ]


def _rule(p: nn.Parameter, scale: float | None, weight_decay: float, decay_norms: bool) -> tuple[str, float, float]:
    """(name, lr_scale, weight_decay) of the group that the parameter `p` belongs to."""
    if scale is not None:
        return ("scaled", float(scale), 0.0)
    if p.ndim <= 1 and not decay_norms:
        return ("no_decay", 1.0, 0.0)
    return ("decay", 1.0, float(weight_decay))
