"""`pnnh certify MODEL`: the certificate as a table; exit 0 plain, 3 not plain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def run(
    model: Annotated[str, tyro.conf.Positional],
    *,
    strict: tyro.conf.UseCounterAction[int] = 0,
    image_size: int | None = None,
    json: Path | None = None,
) -> int:
    """Say whether MODEL is plain: every path to a join crosses the same number of activations.

    Exit code 0: plain. 3: not plain, with every join that breaks it.

    Args:
        model: A timm name, a checkpoint folder, or module:function.
        strict: Count softmax as an activation.
        image_size: Side of the example image, in pixels; default: the model's own.
        json: Also write the certificate to this file.
    """
    import torch
    from rich.console import Console

    from pnnh import report
    from pnnh.certify import certify
    from pnnh.cli._model import load_model

    network, shape = load_model(model, image_size=image_size)
    certificate = certify(network, torch.zeros(2, *shape), strict=bool(strict))
    console = Console()
    if certificate.rows():
        console.print(report.terminal(certificate.rows(), title=model))
    console.print(f"{model}: {certificate}", highlight=False)
    if certificate.gates:
        console.print(f"{len(certificate.gates)} gates multiply two data-dependent values", highlight=False)
    if certificate.num_redundant:
        console.print(f"{certificate.num_redundant} activations change nothing (their input is never negative)")
    if json is not None:
        summary = {
            "model": model,
            "plain": certificate.plain,
            "strict": bool(strict),
            "traced_by": certificate.traced_by,
        }
        counts = {"num_activations": certificate.num_activations, "num_redundant": certificate.num_redundant}
        report.write_text(json, report.json_text({**summary, **counts, "rows": certificate.rows()}))
    return 0 if certificate.plain else 3
