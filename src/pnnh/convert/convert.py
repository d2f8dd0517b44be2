"""`convert`: a trained residual net -> an exactly equal plain one, at a cost that is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pnnh._errors import RunError, UsageError
from pnnh._modules import copied, left_as_found, unwrap
from pnnh.certify import Certificate
from pnnh.certify.certificate import certify_trace
from pnnh.certify.trace import Example, Trace, as_arguments, trace
from pnnh.convert.dense import dense_twin
from pnnh.convert.equivalence import LIMITS, Agreement, agreement, compare
from pnnh.convert.structured import Carry, refuse_inconvertible, structured_twin
from pnnh.cost import Cost, measure_cost

Form = Literal["structured", "dense"]
TOLERANCE = 1e-9


@dataclass(frozen=True, repr=False)
class Conversion:
    """What `convert` did, or with `dry_run` would do.

    before, after: cost of one image. carries: values taken across activations (structured form). certificate: of the
    twin. agreement: proof in float64, rounding: in the source's own precision (both None in a dry run), over all
    outputs.
    """

    form: Form
    joins: int
    before: Cost
    after: Cost
    carries: tuple[Carry, ...]
    certificate: Certificate
    agreement: Agreement | None = None
    rounding: Agreement | None = None

    def rows(self) -> list[dict]:
        ratio = {"net": "ratio"}
        for key, value in vars(self.before).items():
            ratio[key] = getattr(self.after, key) / value if value else float("nan")
        return [{"net": "residual", **vars(self.before)}, {"net": f"plain, {self.form}", **vars(self.after)}, ratio]

    def __str__(self) -> str:
        if self.agreement is None or self.rounding is None:
            return f"{self.joins} shortcuts can be converted"
        if self.agreement.relative_error == self.rounding.relative_error == 0:
            return f"{self.joins} shortcuts converted, exactly equal (bitwise, float64 and the net's own precision)"
        return (
            f"{self.joins} shortcuts converted, equal up to rounding: relative error "
            f"{self.agreement.relative_error:.1e} in float64, {self.rounding.relative_error:.1e} in the net's precision"
        )

    def __repr__(self) -> str:
        return f"Conversion({self.form}: {self})"


class SizeGuard:
    """A hook on a twin that refuses inputs of another size than the twin was traced and proven for."""

    def __init__(self, arguments: tuple[Tensor, ...]):
        self.sizes = tuple(tuple(item.shape[1:]) for item in arguments)

    def __call__(self, module: nn.Module, inputs: tuple, options: dict) -> None:
        sizes = tuple(tuple(item.shape[1:]) for item in (*inputs, *options.values()))
        if sizes != self.sizes:
            raise UsageError(
                f"this twin was converted for inputs of {_sizes(self.sizes)}, not {_sizes(sizes)}; convert the source "
                "again with an example of that size"
            )


def _sizes(sizes: tuple[tuple[int, ...], ...]) -> str:
    return " and ".join("x".join(map(str, size)) for size in sizes)


def convert(
    model: nn.Module, example: Example, *, form: Form = "structured", dry_run: bool = False
) -> tuple[nn.Module | None, Conversion]:
    """Build the exact plain twin of a residual network and prove it, on all that the network returns.

    Args:
        model: any net that torch.export can trace; read in eval mode (norms frozen), left as it is. Wrappers of
            torch.compile and DataParallel are looked into.
        example: real inputs, batch of 2 or more (a batch of 1 is doubled); used to trace and to prove.
        form: `structured`: the source's parameters and MACs, the shortcut carried through the activations by a frozen
            Dirac that is applied, not multiplied. `dense`: one chain of single convolutions, at the cost in the report.
        dry_run: only the cost; the twin is None.

    Returns:
        (twin, report). The twin takes any batch size, and images of the example's size only: other sizes raise. The
        structured twin has the source's parameter names.

    Raises:
        UsageError: the net is plain already (structured form), or something has no exact twin (it is named).
        RunError: the proof failed.
    """
    if form not in get_args(Form):
        raise UsageError(f"form {form!r} is not known; choose {' or '.join(get_args(Form))}")
    source = unwrap(model)
    arguments = tuple(item if len(item) > 1 else torch.cat([item, item]) for item in as_arguments(example))
    with left_as_found(source, training=False):
        traced = trace(source, arguments, dynamic_batch=True)
        found = certify_trace(traced)
        if found.plain and form == "structured":
            raise UsageError(
                f"{type(source).__name__} is plain already: {found.num_activations} activations, no shortcut, "
                "nothing to convert; fuse or export it as it is"
            )
        refuse_inconvertible(traced)
        before = measure_cost(source, arguments)
        twin, carries, certificate = _built(traced, arguments, form, dry_run)
        proof = None if dry_run else compare(source, twin, arguments)
        twin = twin.to(_dtype(source)).eval()
        after = measure_cost(twin, _on_device_of(twin, arguments))
        if proof is None:
            return None, Conversion(form, len(found.joins), before, after, carries, certificate)
        with torch.no_grad():
            rounding = agreement(source(*arguments), twin(*arguments))
    limit = LIMITS.get(_dtype(source), LIMITS[torch.float32])
    if not (proof.relative_error <= TOLERANCE and rounding.relative_error <= 100 * limit and certificate.plain):
        raise RunError(
            f"the twin is not proven: relative error {proof.relative_error:.1e} in float64 (limit {TOLERANCE:.0e}), "
            f"{certificate}; nothing is returned, please report the model"
        )
    twin = copied(twin)  # the graph reads the source's own weights
    twin.register_forward_pre_hook(SizeGuard(arguments), with_kwargs=True)
    return twin, Conversion(form, len(found.joins), before, after, carries, certificate, proof, rounding)


def _built(
    traced: Trace, arguments: tuple[Tensor, ...], form: Form, dry_run: bool
) -> tuple[nn.Module, tuple[Carry, ...], Certificate]:
    if form == "structured":
        twin, carries = structured_twin(traced)
        inputs = frozenset(node.name for node in twin.graph.nodes if node.op == "placeholder")
        return twin, carries, certify_trace(Trace(twin.graph, inputs, traced.how))
    twin = dense_twin(traced, device="meta" if dry_run else "cpu").eval()
    return twin, (), certify_trace(trace(twin, [item.double() for item in _on_device_of(twin, arguments)]))


def _dtype(model: nn.Module) -> torch.dtype:
    floats = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floats, torch.get_default_dtype())


def _on_device_of(twin: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments on the device of `twin` (meta in a dry run of the dense form)."""
    first = next(twin.parameters(), arguments[0])
    return tuple(item.to(first.device) for item in arguments)
