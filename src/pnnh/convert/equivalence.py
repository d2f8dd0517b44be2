"""Do two networks compute the same function? Measured in float64, relative to the size of the outputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from pnnh._errors import RunError
from pnnh.certify.trace import Example, as_arguments


@dataclass(frozen=True)
class Agreement:
    """relative_error: max |a - b| / max |a| over all outputs. argmax: share of samples with the same largest output."""

    relative_error: float
    argmax: float
    samples: int


def agreement(reference: torch.Tensor, other: torch.Tensor) -> Agreement:
    """Compare two outputs [B, ...]; `reference` sets the scale."""
    if reference.shape != other.shape:
        raise RunError(f"outputs have shapes {tuple(reference.shape)} and {tuple(other.shape)}")
    scale = reference.abs().max().double().clamp_min(torch.finfo(torch.float64).tiny)
    error = float((reference.double() - other.double()).abs().max() / scale)
    same = (reference.flatten(1).argmax(1) == other.flatten(1).argmax(1)).double().mean()
    return Agreement(error, float(same), len(reference))


def compare(reference: nn.Module, other: nn.Module, example: Example, *, noise: bool = True) -> Agreement:
    """Run both nets in float64 on `example`, and on Gaussian noise of its shape, and compare.

    Works on copies; the nets keep their dtype and mode.
    """
    arguments = [item.double() if item.is_floating_point() else item for item in as_arguments(example)]
    batches = [arguments]
    if noise and all(item.is_floating_point() for item in arguments):
        generator = torch.Generator().manual_seed(0)
        batches.append([torch.randn(item.shape, generator=generator, dtype=torch.float64) for item in arguments])
    first, second = in_float64(reference), in_float64(other)
    with torch.no_grad():
        found = [agreement(_tensor(first(*batch)), _tensor(second(*batch))) for batch in batches]
    samples = sum(item.samples for item in found)
    same = sum(item.argmax * item.samples for item in found) / samples
    return Agreement(max(item.relative_error for item in found), same, samples)


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode."""
    return copy.deepcopy(model).double().eval()


def _tensor(output) -> torch.Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output
