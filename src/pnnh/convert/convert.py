"""`convert`: a trained residual net -> an exactly equal plain one, at a cost that is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from pnnh._errors import RunError, UsageError
from pnnh.certify import Certificate
from pnnh.certify.certificate import certify_trace
from pnnh.certify.trace import Example, as_arguments, trace
from pnnh.convert.dense import dense_twin
from pnnh.convert.equivalence import Agreement, compare
from pnnh.convert.structured import Carry, refuse_inconvertible, structured_twin
from pnnh.cost import Cost, measure_cost
from pnnh.layers.fold import Form

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Conversion:
    """What `convert` did, or with `dry_run` would do.

    before, after: cost of one image. carries: values taken across activations (structured form). agreement: float64
    proof (None in a dry run). certificate: of the twin.
    """

    form: Form
    joins: int
    before: Cost
    after: Cost
    carries: tuple[Carry, ...]
    certificate: Certificate
    agreement: Agreement | None

    def rows(self) -> list[dict]:
        ratio = {"net": "ratio"}
        for key, value in vars(self.before).items():
            ratio[key] = getattr(self.after, key) / value if value else float("nan")
        return [{"net": "residual", **vars(self.before)}, {"net": f"plain, {self.form}", **vars(self.after)}, ratio]

    def __str__(self) -> str:
        if self.agreement is None:
            return f"{self.joins} shortcuts can be converted"
        return f"{self.joins} shortcuts converted, relative error {self.agreement.relative_error:.1e} in float64"


def convert(
    model: nn.Module, example: Example, *, form: Form = "structured", dry_run: bool = False
) -> tuple[nn.Module | None, Conversion]:
    """Build the exact plain twin of a residual network and prove it.

    Args:
        model: any net that torch.export can trace; read in eval mode (norms frozen), not changed.
        example: real inputs, batch of 2 or more (a batch of 1 is doubled); used to trace and to prove.
        form: `structured`: the source's parameters and MACs, the shortcut carried through the activations by a frozen
            Dirac that is applied, not multiplied. `dense`: one chain of single convolutions, at the cost in the report.
        dry_run: only the cost; the twin is None.

    Returns:
        (twin, report). The structured twin has the source's parameter names.

    Raises:
        UsageError: something has no exact twin (named, with the way out). RunError: the proof failed.
    """
    if form not in get_args(Form):
        raise UsageError(f"form {form!r} is not known; choose {' or '.join(get_args(Form))}")
    arguments = tuple(item if len(item) > 1 else torch.cat([item, item]) for item in as_arguments(example))
    source = trace(model, arguments)
    refuse_inconvertible(source)
    before = measure_cost(model, arguments)
    twin, carries = _build(model, arguments, form, dry_run)
    proof = None if dry_run else compare(model, twin, arguments)
    twin = twin.to(next(model.parameters(), arguments[0]).dtype).eval()
    like = _like(twin, arguments)
    traced = trace(twin, like)
    joins, after, certificate = len(certify_trace(source).joins), measure_cost(twin, like), certify_trace(traced)
    report = Conversion(form, joins, before, after, carries, certificate, proof)
    if proof is None:
        return None, report
    if not proof.relative_error <= TOLERANCE or not certificate.plain:
        raise RunError(
            f"the twin is not proven: relative error {proof.relative_error:.1e} in float64 (limit {TOLERANCE:.0e}), "
            f"{certificate}; nothing is returned, please report the model"
        )
    return twin, report


def _build(model: nn.Module, arguments, form: Form, dry_run: bool) -> tuple[nn.Module, tuple[Carry, ...]]:
    traced = trace(model, arguments, dynamic_batch=True)
    if form == "structured":
        return structured_twin(traced)
    return dense_twin(traced, device="meta" if dry_run else "cpu"), ()


def _like(twin: nn.Module, arguments):
    """The arguments on the device of `twin` (meta in a dry run of the dense form), in its dtype."""
    first = next(twin.parameters(), arguments[0])
    return tuple(item.to(first.device, first.dtype) if item.is_floating_point() else item for item in arguments)
