"""What `pnnh diagnose` needs around its one verb: images, models, files."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pnnh import __version__, provenance, report
from pnnh._errors import UsageError
from pnnh.analysis import Dissipation
from pnnh.data.load import NAMES
from pnnh.load import Loaded
from pnnh.report.dissipation import dissipation_page, reading

COLUMNS = {"depth": "#", "layer": "layer", "survival": "alive", "dead": "dead"}
COLUMNS |= {"r2": "R²", "r2_high": "R² noise", "cka": "CKA", "cka_high": "CKA noise", "gradient": "gradient"}


def images_for(loaded: Loaded, *, data: str | None, folder: Path | None, num: int, seed: int) -> Tensor:
    """The images that a network is diagnosed on: from `folder`, from `data`, or from what it was trained on."""
    if folder is not None:
        return _from_folder(folder, loaded.input_size, num)
    return labelled(data or _own_data(loaded), loaded.input_size, num, seed)[0]


def _own_data(loaded: Loaded) -> str:
    """What a checkpoint was trained on; digits for what is no checkpoint."""
    name = str((loaded.record.get("data") or {}).get("name")) if loaded.record else "digits"
    known = name.partition(" ")[0]  # "digits (144 training images held out)" is digits
    if known not in NAMES:
        raise UsageError(f"{loaded.name} was trained on {name}: say where its images are, with --data or --images")
    return known


def labelled(spec: str, shape: tuple[int, int, int], num: int, seed: int) -> tuple[Tensor, Tensor]:
    """[num, C, H, W] test images, normalised by the training images' mean and standard deviation, and their classes."""
    from pnnh.data.load import load_data
    from pnnh.data.types import resize

    data = load_data(spec, channels=shape[0] if shape[0] in (1, 3) else None)
    if len(data.test) < num:
        raise UsageError(f"--num {num}: {spec} has {len(data.test)} test images")
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(seed))[:num]
    images = data.test.pixels(chosen)
    if images.shape[-1] != shape[-1]:
        images = resize(images, shape[-1])
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (images.float() / 255 - mean) / std, data.test.labels[chosen]


def _from_folder(folder: Path, shape: tuple[int, int, int], num: int) -> Tensor:
    """The first `num` images below `folder`: cropped to the middle, resized, normalised by their statistics."""
    from pnnh.data.folder import read_pictures

    if not folder.is_dir():
        raise UsageError(f"no directory at {folder}; --images takes a directory of image files")
    channels, height, width = shape
    images = read_pictures(folder, num, size=(width, height), channels=channels).float() / 255
    if len(images) < 8:
        raise UsageError(f"{folder} holds {len(images)} readable image file(s); a diagnosis needs at least 8")
    return (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True).clamp(min=1e-3)


def in_terminal(diagnosis: Dissipation) -> list[dict]:
    """What fits 80 columns."""
    rows = ({name: row[key] for key, name in COLUMNS.items()} for row in diagnosis.rows())
    return [{key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def verdict(diagnosis: Dissipation) -> str:
    return reading((diagnosis.model, diagnosis.rows()), diagnosis.dissipation_depth, diagnosis.gradient_growth)


def write(found: Sequence[Dissipation], out: Path) -> list[Path]:
    """diagnosis.json, .csv and .html in `out`."""
    command = provenance.command()
    versions = f"pnnh {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    evidence = [command, versions, f"{platform.machine()}, {datetime.date.today()}", *map(_measured, found)]
    nets = [
        {
            "model": diagnosis.model,
            "dissipation_depth": diagnosis.dissipation_depth,
            "gradient_growth": diagnosis.gradient_growth,
            "settings": diagnosis.settings,
            "layers": diagnosis.rows(),
            "correlation": diagnosis.correlation.tolist(),
        }
        for diagnosis in found
    ]
    rows = [row for diagnosis in found for row in diagnosis.rows()]
    return [
        report.write_text(
            out / "diagnosis.json", report.json_text({"command": command, "versions": versions, "models": nets})
        ),
        report.write_text(out / "diagnosis.csv", report.csv_text(rows)),
        report.write_text(out / "diagnosis.html", report.html(dissipation_page(found, evidence))),
    ]


def _measured(diagnosis: Dissipation) -> str:
    settings = diagnosis.settings
    shape = "x".join(map(str, settings["image_shape"]))
    return (
        f"{diagnosis.model}: {settings['images']} images of {shape}, {settings['mode']} mode, seed {settings['seed']}"
    )
