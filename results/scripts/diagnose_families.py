"""Diagnose one small model of every timm and torchvision family, random weights: results/diagnose_families.json.

    python results/scripts/diagnose_families.py                  # goes on where it was stopped
    python results/scripts/diagnose_families.py --only resnet vit --again

Images are reduced where the architecture takes it, else of the model's own size. Each family has a process of its own,
with a limit of CPU time and of memory. A failure is recorded with its reason, never skipped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import time
from importlib.metadata import version
from pathlib import Path

import timm
import torch
import torchvision

from pnnh.analysis import Decoder, diagnose
from pnnh.provenance import environment
from pnnh.report import json_text, write_text

OUT = Path(__file__).resolve().parents[1]
SMALL = ("pico", "femto", "atto", "zepto", "nano", "tiny", "xxs", "xxsmall", "small", "mini", "s0", "b0", "t0", "18")
SIZES = (64, 96, 128)  # tried before a model's own
CHEAP = Decoder(grid=4, features=8, ridges=(1e-2, 1.0))
CPU_SECONDS, MEMORY = 600, 12 * 2**30
VISION = {
    "classification": "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 "
    "maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 "
    "squeezenet1_1 swin_t swin_v2_t vgg11 vit_b_32 wide_resnet50_2",
    "segmentation, dict output": "deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large",
    "detection, list of dicts": "fasterrcnn_mobilenet_v3_large_320_fpn ssdlite320_mobilenet_v3_large",
}


def jobs() -> dict[str, tuple[str, list[str]]]:
    """Family -> (library, candidates), the four that sound smallest in timm's case."""
    found = {}
    for module in timm.list_modules():
        names = sorted(timm.list_models(module=module), key=_sounds)[:4]
        if names:
            found[module] = ("timm", names)
    for kind, names in VISION.items():
        for name in names.split():
            found[f"torchvision {name} ({kind})"] = ("torchvision", [name])
    return found


def _sounds(name: str) -> tuple:
    return next((place for place, part in enumerate(SMALL) if part in name), len(SMALL)), len(name), name


def _weighs(name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:  # a constructor that computes with values; its rank by name stands
        return float("inf")


def builds(library: str, name: str):
    """(model, image size) to try in turn."""
    if library == "torchvision":
        sides = (128,) if name != "inception_v3" else (299,)
        extra = {"weights_backbone": None} if name.startswith(("deeplab", "fcn", "lraspp", "faster", "ssd")) else {}
        fixed = {"maxvit_t": 224, "vit_b_32": 224, "ssdlite320_mobilenet_v3_large": 320}
        for side in (fixed[name],) if name in fixed else sides:
            yield torchvision.models.get_model(name, weights=None, **extra), side
        return
    config = timm.get_pretrained_cfg(name)
    own = config.input_size[-1] if config else 224
    if not (config and config.fixed_input_size):
        model = timm.create_model(name)
        for side in (*(size for size in SIZES if size < own), own):
            yield model, side
    for side in (size for size in (*SIZES, own) if size <= own):
        yield timm.create_model(name, **({"img_size": side} if side < own else {})), side


def examine(library: str, names: list[str]) -> dict:
    name = names[0] if len(names) == 1 else min(names, key=_weighs)
    row, note = {"model": name, "ok": False}, ""
    torch.manual_seed(0)
    attempts = builds(library, name)
    while True:
        try:
            model, side = next(attempts)
            channels = getattr(model, "pretrained_cfg", None) or {"input_size": (3,)}
            images = torch.randn(8, channels["input_size"][0], side, side)
            training = not hasattr(model, "roi_heads") and not hasattr(model, "anchor_generator")  # those want targets
            found = diagnose(model, images, training=training, decoder=CHEAP, batch_size=8, draws=2, pictures=1)
        except StopIteration:
            return row | {"note": note}
        except Exception as error:
            note = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            continue
        layers = found.layers
        row |= {"image_size": side, "activations": len(layers), "r2_first": layers[0].r2, "r2_last": layers[-1].r2}
        row |= {"gradients": sum(layer.gradient == layer.gradient for layer in layers)}
        return row | {"ok": True, "ops": sorted({layer.op for layer in layers}), "note": ""}


def _child(library: str, names: list[str], results) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    results.send(examine(library, names))


def apart(family: str, library: str, names: list[str]) -> dict:
    """`examine` in a process of its own; what ends that process is the note."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    start, child = time.perf_counter(), fork.Process(target=_child, args=(library, names, send))
    child.start()
    send.close()
    try:
        row = receive.recv()
    except EOFError:
        child.join()
        code = -(child.exitcode or 0)
        reason = "over the limit of CPU time" if code == signal.SIGXCPU else f"ended by signal or code {child.exitcode}"
        row = {"model": ", ".join(names), "ok": False, "note": reason}
    child.join()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row |= {"seconds": round(time.perf_counter() - start, 1), "peak_mb_so_far": used.ru_maxrss // 1024}
    return {"family": family, "library": library, **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="families")
    parser.add_argument("--again", action="store_true", help="also those that the record has")
    options = parser.parse_args()
    path = OUT / "diagnose_families.json"
    known = json.loads(path.read_text()) if path.is_file() else {"versions": {}, "rows": []}
    same = known["versions"].get("timm") == version("timm")
    rows = {row["family"]: row for row in known["rows"] if same}
    for family, (library, names) in jobs().items():
        if (options.only is not None and family not in options.only) or (family in rows and not options.again):
            continue
        rows[family] = apart(family, library, names)
        print(json.dumps(rows[family]), flush=True)
        save([rows[name] for name in jobs() if name in rows])


def save(rows: list[dict]) -> None:
    done, total = sum(row["ok"] for row in rows), len(jobs())
    record = {**environment(), "command": "python results/scripts/diagnose_families.py", "seeds": [0]}
    record |= {"families": total, "examined": len(rows), "diagnosed": done, "rows": rows}
    write_text(OUT / "diagnose_families.json", json_text(record))


if __name__ == "__main__":
    main()
