"""`pnnh compare`: plain, residual and PNNH nets side by side, on real images, under one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pnnh.cli._shared import Ints, MaybeFloat, MaybeInt, MaybeInts, Names, check_seed


def run(
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
    recipe: Literal["default", "muon"] = "default",
    holdout: MaybeFloat = None,
    family: Literal["cnn", "vit"] = "cnn",
    width: int = 96,
    patch: int = 4,
    device: str = "auto",
    jobs: MaybeInt = None,
) -> int:
    """Train methods x depths x seeds under one recipe; print a table, write results.json and report.html to --out.

    An interrupted comparison goes on where it stopped when the same command is given again. A net that diverges is
    reported as diverged and the others go on; the exit status is 1 only if all of them did.

    Args:
        data: digits, cifar10, cifar100, fashion-mnist or folder:PATH (train/CLASS/*.jpg and test/CLASS/*.jpg).
        methods: plain, residual, pnnh, pnnh_wide; diracnet, repvgg, isonet, tat; for ViTs skip_init.
        depths: Default 20 and 56, each 6n + 2; for ViTs 12, any number of blocks.
        epochs: Passes over the training images; default 8 for digits, else 10.
        seeds: Of the weights, the order of the images and the augmentation; a net for each.
        out: Folder for results.json, report.html, the finished rows and the trained models.
        image_size: Pixels a side; default the data's own.
        limit: Train on so many images only, stratified.
        batch_size: Images a step; default 128, or 64 below 10,000 training images.
        lr: Largest learning rate; default the recipe's or, where it has one, the method's own.
        recipe: default (SGD 0.1, one cycle; AdamW 0.001 for ViTs), or muon (Muon 0.02, one cycle; no ViTs).
        holdout: Test on this share of the training images instead of the test images: for tuning.
        family: cnn, or vit for Vision Transformers.
        width: Of a ViT's tokens, a multiple of 32.
        patch: Pixels a side of a ViT's patches.
        device: auto, cpu, cuda, cuda:1, ...
        jobs: Nets trained at the same time; default one per CPU core on a CPU (at most 4), one on a GPU.
    """
    print(f"pnnh compare: {', '.join(methods)} on {data}, device {device}", flush=True)
    from pnnh import recipes
    from pnnh._errors import UsageError
    from pnnh.cli._compare import Board, how_many, write
    from pnnh.train import Recipe, check_writable, pick_device

    place = pick_device(device)
    jobs = how_many(jobs, place)
    depths = depths or {"cnn": (20, 56), "vit": (12,)}[family]
    chosen = {"image_size": image_size, "limit": limit, "own_lr": lr is None, "holdout": holdout}
    chosen |= {"methods": methods, "depths": depths, "seeds": tuple(map(check_seed, seeds))}
    compared, fit = recipes.Comparison, recipes.RECIPES[recipe]
    if family == "vit":
        if recipe != "default":
            raise UsageError(f"recipe {recipe!r} is for convolutional nets; leave --recipe out for ViTs")
        compared, fit = recipes.TransformerComparison, recipes.transformer_recipe
        chosen |= {"width": width, "patch": patch}
    sample = compared(data=data, recipe=Recipe(), **chosen)
    check_writable(out)
    images = sample.load()
    wanted = {"epochs": (8 if data == "digits" else 10) if epochs is None else epochs, "batch_size": batch_size}
    fitted = fit(images, **{name: value for name, value in wanted.items() if value is not None})
    fitted = fitted if lr is None else fitted.with_lr(lr)
    plan = compared(data=data, recipe=fitted, **chosen)
    with Board(plan) as board:
        for row in recipes.run(plan, device=str(place), out=out, jobs=jobs, tell=board.tell):
            board.done(row)
    write(plan, board.rows, images, out, place)
    return 0
