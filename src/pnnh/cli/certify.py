"""`pnnh certify MODEL...`: is the network plain, and where is it not? Exit code 0: plain, 3: not plain."""

from __future__ import annotations

from pnnh.cli._shared import MaybePath, MaybeText, Models, Net, Show, check_models, file_in


def run(
    models: Models,
    *,
    strict: bool = False,
    data: MaybeText = None,
    num: int = 256,
    out: MaybePath = None,
    net: Net,
    show: Show,
) -> int:
    """Say whether MODELS are plain: every path to a join crosses the same number of activations.

    Exit code 0: all are plain. 3: one is not, and every join that breaks it is listed.

    Args:
        models: timm names, checkpoint folders or module:function.
        strict: Count softmax as an activation.
        data: Data set whose test images tell what the path's activations do: digits, cifar10, folder:PATH, ...
        num: How many of its test images.
        out: Folder for certificate.json, or a .json file.
    """
    import torch

    from pnnh import report
    from pnnh.certify import certify
    from pnnh.cli import _diagnose

    found = []
    for name in check_models(models):
        loaded = net.open(name)
        images, labels = (None, None) if data is None else _diagnose.labelled(data, loaded.input_size, num, seed=0)
        example = torch.zeros(2, *loaded.input_size)
        certificate = certify(loaded.model, example, strict=strict, data=images, labels=labels)
        if certificate.effect:
            show.table(certificate.effect.rows(), f"{name}: activations on the path")
        if certificate.rows():
            show.table(certificate.rows(), name)
        show.say(f"{name}: {certificate}")
        if certificate.gates:
            show.say(f"{len(certificate.gates)} gates multiply two data-dependent values")
        if certificate.num_redundant:
            show.say(f"{certificate.num_redundant} activations change nothing (their input is never negative)")
        found.append((name, certificate))
    if out is not None:
        facts = ("plain", "strict", "traced_by", "num_activations", "num_redundant")
        nets = [
            {"model": name}
            | {fact: getattr(item, fact) for fact in facts}
            | {"rows": item.rows(), "effect": item.effect and vars(item.effect) | {"crossings": item.effect.rows()}}
            for name, item in found
        ]
        show.wrote([report.write_text(file_in(out, "certificate.json"), report.json_text(nets))])
    return 0 if all(certificate.plain for _, certificate in found) else 3
