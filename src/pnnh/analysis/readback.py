"""One picture as a linear decoder reads it back along a network, small enough to be kept in a record."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pnnh._errors import UsageError
from pnnh._modules import left_as_found
from pnnh.analysis.decoder import Decoder, Pairs, Readout, Targets, sketch
from pnnh.analysis.inputs import as_images, run_model, view
from pnnh.analysis.probe import Call, probe
from pnnh.analysis.tally import as_map


def read_back(model: nn.Module, images: Tensor, *, steps: int = 8, training: bool | None = None) -> dict[str, Any]:
    """The first of `images` as the ends of `steps` equal parts of `model` still tell it, as plain values for JSON.

    A layer may hold two tensors (learner features and stream, or a residual block's inside and its sum), so at the end
    of each part the better read of the last two activations counts, for every network alike. `pnnh.diagnose` measures
    every activation, with a noise floor; this is the short form of it.

    Args:
        images: [N, C, H, W], N >= 16; each decoder is fitted on one half of them and reads the other.
        training: run in train or eval mode; None runs as found.

    Returns:
        "activations": how many ran; "at": the number of the activation read at each part's end; "r2" of the picture
        there; "survival": share of positive responses of every activation; "shape" [1 + steps, C, V, V] and "pixels",
        base64 of as many bytes: the original, then what is read back, on one scale of brightness.

    Raises:
        UsageError: too few images, or no activation ran.
    """
    images = as_images(images)
    decoder = Decoder(features=16).fit_to(*images.shape[-2:])
    targets = Targets(view(images, decoder), decoder)
    survival: list[float] = []
    reads: dict[int, tuple[Readout | None, Tensor]] = {}
    with left_as_found(model, training), torch.no_grad():
        run_model(model, images, probe(model, lambda call: survival.append((call.after > 0).float().mean().item())))
        if not survival or len(images) < 16:
            raise UsageError(f"{len(survival)} activations, {len(images)} images: needs at least 1 and 16")
        wanted = {index for end in ends(len(survival), steps) for index in (end - 1, end) if index >= 0}
        count = 0

        def see(call: Call) -> None:
            nonlocal count
            if count in wanted:
                reads[count] = _read(call.after.float(), targets, images.shape[-2:])
            count += 1

        run_model(model, images, probe(model, see))
    r2 = {index: 0.0 if readout is None else max(0.0, readout.r2) for index, (readout, _) in reads.items()}
    chosen = [max((i for i in (end - 1, end) if i in r2), key=lambda i: r2[i]) for end in ends(len(survival), steps)]
    shape, pixels = _as_bytes(torch.stack([targets.pictures[0], *(reads[index][1] for index in chosen)]))
    return {
        "activations": len(survival),
        "at": [index + 1 for index in chosen],
        "r2": [round(r2[index], 4) for index in chosen],
        "survival": [round(share, 4) for share in survival],
        "shape": shape,
        "pixels": pixels,
    }


def ends(count: int, steps: int) -> list[int]:
    """Index of the last activation of each of `steps` equal parts; fewer where there are fewer activations."""
    return sorted({max(1, round(count * step / steps)) - 1 for step in range(1, steps + 1)})


def _read(features: Tensor, targets: Targets, size: tuple[int, int]) -> tuple[Readout | None, Tensor]:
    """The decoder of one activation [N, ...], and the first picture [C, V, V] as the other half's decoder reads it."""
    sketched = sketch(as_map(features, size), targets.decoder).cpu()
    pairs = Pairs()
    for half in (0, 1):
        index = torch.arange(half, len(features), 2)
        pairs.add(half, sketched[index], *targets.describe(index[:, None], sketched.shape[1:3]))
    readout = pairs.solve(targets.decoder.ridges, targets.mean.numel())
    picture = targets.mean if readout is None else targets.compose(readout.read(sketched[:1], 0))[0]
    return readout, picture


def _as_bytes(pictures: Tensor) -> tuple[list[int], str]:
    """[1 + steps, C, V, V] on the first one's range of brightness: shape and base64 of one byte a number."""
    low, high = pictures[0].min(), pictures[0].max()
    scaled = ((pictures - low) / (high - low).clamp(min=1e-12)).nan_to_num(0.0).clamp(0, 1)
    return list(scaled.shape), base64.b64encode((255 * scaled).round().numpy().astype(np.uint8).tobytes()).decode()
