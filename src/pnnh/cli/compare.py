"""`pnnh compare`: plain, residual and PNNH nets side by side, on real images, under one recipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from pnnh.cli._shared import Ints, MaybeFloat, MaybeInt, MaybeInts, Names, Show, check_seed


def run(
    *,
    data: str = "digits",
    methods: Names = ("plain", "residual", "pnnh"),
    depths: MaybeInts = None,
    epochs: MaybeInt = None,
    seeds: Ints = (0,),
    out: Path = Path("runs/compare"),
    image_size: MaybeInt = None,
    limit: MaybeInt = None,
    batch_size: MaybeInt = None,
    lr: MaybeFloat = None,
    recipe: Literal["default", "fast", "long", "muon"] = "default",
    held_out: MaybeInt = None,
    family: Literal["cnn", "imagenet", "vit"] = "cnn",
    width: int = 96,
    patch: int = 4,
    device: str = "auto",
    amp: Literal["fp32", "bf16"] = "fp32",
    compile: bool = False,
    jobs: MaybeInt = None,
    show: Show,
) -> int:
    """Train methods x depths x seeds under one recipe; print a table, write results.json and report.html to --out.

    An interrupted comparison goes on where it stopped when the same command is given again. A net that diverges is
    reported as diverged and the others go on; the exit status is 1 only if all of them did.

    Args:
        data: digits, cifar10, cifar100, fashion-mnist, imagenette64 or folder:PATH (train/CLASS/*.jpg and
            test/CLASS/*.jpg); cifar10:PATH says where the set lies.
        methods: Default plain, residual, pnnh. Others: residual_same_block, residual_narrow,
            residual_short, residual_shared, residual_2015, pnnh_wide, diracnet, repvgg, isonet, tat; for ViTs
            residual, plain, pnnh, skip_init.
        depths: Default 20 and 56, each 6n + 2; for ViTs 12, any number of blocks.
        epochs: Passes over the training images; default the recipe's, for digits 8.
        seeds: Of the weights, the order of the images and the augmentation; a net for each.
        out: Folder for results.json, report.html, the finished rows and the trained models.
        image_size: Pixels a side; default the data's own.
        limit: Train on so many images only, stratified.
        batch_size: Images a step; default 128, or 64 below 10,000 training images.
        lr: Largest learning rate of all methods; default each method's own.
        recipe: default (10 epochs), fast (30), long (200, as in the literature), or muon (10, Muon in place of SGD).
        held_out: Test on so many training images instead of the test images: for tuning.
        family: cnn (for small images), imagenet (for images of 64 pixels and more; depth 18, methods plain, residual,
            residual_narrow, pnnh), or vit (Vision Transformers, which have the recipes default and muon).
        width: Of a ViT's tokens, a multiple of 32.
        patch: Pixels a side of a ViT's patches.
        device: auto, cpu, cuda, cuda:1, ...
        amp: Arithmetic of the forward pass; bf16 is faster only where the processor has instructions for it.
        compile: torch.compile the nets; the first step takes long, on a CPU it needs a C++ compiler.
        jobs: Nets trained at the same time; default one per CPU core on a CPU (at most 4), one on a GPU.
    """
    print(f"pnnh compare: {', '.join(methods)} on {data}, device {device}", flush=True)
    from pnnh._errors import RunError
    from pnnh.cli._board import Board
    from pnnh.compare import Cnn, Imagenet, Vit, compare
    from pnnh.report import html, json_text, write_text
    from pnnh.report.comparison import as_read
    from pnnh.train import Execution

    epochs = 8 if epochs is None and data == "digits" and recipe in ("default", "muon") else epochs
    entries = {"epochs": epochs, "batch_size": batch_size, "amp": amp}
    try:
        with Board() as board:
            results = compare(
                data,
                methods=methods,
                depths=depths,
                seeds=tuple(map(check_seed, seeds)),
                recipe=recipe,
                family={"cnn": Cnn(), "imagenet": Imagenet()}.get(family) or Vit(width, patch),
                image_size=image_size,
                limit=limit,
                held_out=held_out,
                lr=lr,
                choices={name: value for name, value in entries.items() if value is not None},
                device=device,
                execution=Execution(compile=compile),
                jobs=_how_many(jobs, device),
                out=out,
                observer=board,
            )
    except KeyboardInterrupt:
        print("pnnh compare: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    show.table(as_read(results.rows()))
    files = {"results.json": json_text(results.to_dict()), "report.html": html(results.page())}
    show.wrote(write_text(out / name, text) for name, text in files.items())
    if all(row.get("diverged") for row in results.cells):
        raise RunError(f"none of the {len(results.cells)} nets trained, all diverged; lower --lr")
    return 0


def _how_many(jobs: int | None, device: str) -> int:
    """Nets at a time: what was asked for, or what is usual on the device."""
    from pnnh._errors import UsageError
    from pnnh.train import pick_device

    if jobs is None:
        return 1 if pick_device(device).type != "cpu" else min(4, os.cpu_count() or 1)
    if jobs < 1:
        raise UsageError(f"jobs {jobs} must be at least 1; leave it out for what is usual on the device")
    return jobs
