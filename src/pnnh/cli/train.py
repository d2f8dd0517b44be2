"""`pnnh train`: one model, one data set, one folder with everything to use the result or to go on."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pnnh.cli._shared import MaybeFloat, MaybeInt, Model, check_seed

if TYPE_CHECKING:
    from torch import nn

    from pnnh.data import Dataset


def run(
    model: Model,
    *,
    data: str = "digits",
    out: Path = Path("runs/train"),
    recipe: Literal["default", "fast", "long", "muon", "a2", "a3"] = "default",
    epochs: MaybeInt = None,
    batch_size: MaybeInt = None,
    lr: MaybeFloat = None,
    seed: int = 0,
    image_size: MaybeInt = None,
    channels: MaybeInt = None,
    limit: MaybeInt = None,
    device: str = "auto",
    amp: Literal["fp32", "bf16"] = "fp32",
    compile: bool = False,
    accumulate: int = 1,
    checkpointing: bool = False,
    watch: MaybeInt = None,
    resume: bool = True,
    trust: bool = False,
) -> int:
    """Train MODEL; weights, record and a state to go on from are written to --out.

    Several processes train it together under `torchrun` or `accelerate launch`.
    Exit code 0: done. 75: stopped by SIGTERM or Ctrl-C and saved; the same command goes on.

    Args:
        model: A timm name (pnnh_resnet20, resnet18, ...), a folder this command wrote, or module:function.
        data: digits, cifar10, cifar100, fashion-mnist, imagenette64, folder:PATH (train/CLASS/*.jpg and
            test/CLASS/*.jpg) or, decoded as needed, imagefolder:PATH; cifar10:PATH says where the set lies.
        out: Folder for model.safetensors, record.json, manifest.json, events.jsonl and state/.
        recipe: default (SGD, one cycle), fast (the same at 0.3 for 30 epochs), long (200 epochs as in the literature),
            muon (the default with Muon), or as "ResNet strikes back": a3 (100 epochs, best at 160 px), a2 (300 epochs).
        epochs: Passes over the training images; default 10, or the recipe's.
        batch_size: Images a step, over all processes; default 128, or 64 below 10,000 training images; a2, a3: 2048.
        lr: Largest learning rate; default that of `pnnh compare` for the same net and recipe, else the recipe's.
        seed: Of the weights, the order of the images and the augmentation.
        image_size: Pixels a side; default the data's own.
        channels: 1 for grey, 3 for colour; default the data's own.
        limit: Train on so many images only, stratified.
        device: auto, cpu, cuda, cuda:1, ...
        amp: Arithmetic of the forward pass.
        compile: torch.compile the model; the first step takes long, on a CPU it needs a C++ compiler.
        accumulate: Passes in which a process works through its share of a step.
        checkpointing: Compute activations again in the backward pass instead of keeping them.
        watch: Every so many steps, write survival, dead units and gradients of all activations to OUT/watch.csv.
        resume: Go on with the run found in --out; --no-resume starts anew.
        trust: Run the code that a checkpoint's record names (module:function).
    """
    print(f"pnnh train: {model} on {data}, device {device}", flush=True)
    from pnnh.analysis import watch as watching
    from pnnh.cli._board import Bar
    from pnnh.compare import CNN_RECIPES, rate_for
    from pnnh.data import load_data
    from pnnh.train import (
        STOPPED_EXIT_CODE,
        Execution,
        StopOnSignal,
        Stopped,
        check_writable,
        join,
        pick_device,
        train,
    )

    place = pick_device(device)
    check_seed(seed)
    team = join(place.type)
    team.first(lambda: check_writable(out))
    shape = {"image_size": image_size, "channels": channels}
    images = team.in_turn(lambda: load_data(data, **shape, limit=limit))
    chosen = {"epochs": epochs, "batch_size": batch_size}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    plan = CNN_RECIPES[recipe](images, amp=amp, **chosen)
    lr = rate_for(model, recipe) if lr is None else lr
    plan = plan if lr is None else plan.with_lr(lr)
    network, spec = _build(model, images, seed, trust)
    execution = Execution(accumulate=accumulate, checkpointing=checkpointing, compile=compile)
    with StopOnSignal() as stop, Bar() as bar:
        try:
            options = {"seed": seed, "device": place, "out": out, "resume": resume, "spec": spec, "stop": stop}
            options |= {"on_step": bar} if team.rank == 0 else {}
            epochs_done = train(network, images, plan, **options, execution=execution)
            with nullcontext() if watch is None or team.rank else watching(network, watch, out=out / "watch.csv"):
                for epoch in epochs_done:
                    if team.rank == 0:
                        print(f"epoch {epoch.epoch}/{plan.epochs}  {epoch}", flush=True)
        except Stopped as stopped:
            if team.rank == 0:
                print(f"pnnh train: {stopped}", file=sys.stderr)
            return STOPPED_EXIT_CODE
    if team.rank:
        return 0
    low, high = (100 * end for end in epoch.interval)
    seen = f"95 % interval {low:.1f} to {high:.1f}, {epoch.test_images} images, chance {100 * epoch.chance:.1f} %"
    seen += ", after few steps: batch norm statistics recomputed" if epoch.norms_recomputed else ""
    print(f"{model} on {images.name}: test accuracy {100 * epoch.test_accuracy:.2f} % ({seen}), saved in {out}")
    return 0


def _build(model: str, images: Dataset, seed: int, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network, fitted to the images where it is a timm name, and what a record says to build it again."""
    import timm
    import torch

    from pnnh.load import open_model

    torch.manual_seed(seed)
    if Path(model).is_dir():
        loaded = open_model(model, trust=trust)
        return loaded.model, loaded.record["model"]
    if ":" in model:
        return open_model(model).model, {"name": model, "kwargs": {}}
    kwargs = {"num_classes": images.num_classes, "in_chans": images.channels}
    network = open_model(model, **kwargs, image_size=images.image_size).model
    config = timm.get_pretrained_cfg(model, allow_unregistered=True)
    sized = {"img_size": images.image_size} if config is not None and config.fixed_input_size else {}
    return network, {"name": model, "kwargs": kwargs | sized}
