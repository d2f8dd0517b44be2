"""`pnnh diagnose MODEL...`: how much of the input is left, layer by layer."""

from __future__ import annotations

from pathlib import Path

from pnnh.cli._shared import MaybePath, MaybeText, Models, Net, Show, check_models, check_seed


def run(
    models: Models,
    *,
    data: MaybeText = None,
    images: MaybePath = None,
    num: int = 64,
    seed: int = 0,
    out: MaybePath = None,
    net: Net,
    show: Show,
) -> None:
    """See, layer by layer, how much of the input is left in MODELS, how many neurons survive and what theory expects.

    Untrained models run in train mode, so that batch norm normalises; with weights, in eval mode.

    Args:
        models: timm names, checkpoint folders or module:function; in the report all are drawn over the first.
        data: Data set to take images from: digits, cifar10, cifar100, fashion-mnist, imagenette64 or folder:PATH;
            by default a checkpoint's own, else digits.
        images: A directory of image files instead.
        num: Number of images, at least 8; half fit the readout, half score it.
        seed: Of random weights and of the choice of images.
        out: Folder for diagnosis.json, diagnosis.csv and diagnosis.html.
    """
    import torch

    from pnnh._errors import UsageError
    from pnnh.analysis import diagnose
    from pnnh.cli import _diagnose
    from pnnh.report.table import printable

    if num < 8:
        raise UsageError(f"--num {num} must be at least 8: half the images fit the readout, half score it")
    if data is not None and images is not None:
        raise UsageError("--data and --images both say where images come from; give one")
    results = []
    for name in check_models(models):
        show.say(f"diagnosing {name} on {num} images")
        torch.manual_seed(check_seed(seed))
        loaded = net.open(name)
        chosen = _diagnose.images_for(loaded, data=data, folder=images, num=num, seed=seed)
        options = {"training": not loaded.trained, "seed": seed}
        results.append(diagnose(loaded.model, chosen, name=printable(Path(name).name), **options))
        show.table(_diagnose.in_terminal(results[-1]), results[-1].model)
        show.say(_diagnose.verdict(results[-1]))
    if out is not None:
        show.wrote(_diagnose.write(results, out))
