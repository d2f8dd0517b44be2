"""The images of a diagnosis: checked, cut into batches with unrelated partners, and run through the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnnh._errors import RunError, UsageError
from pnnh.analysis import measures
from pnnh.analysis.decoder import Decoder
from pnnh.analysis.tally import Batch

LEAST = 8  # images: two halves, and unbiased HSIC needs four in a batch


def as_images(images: Tensor | Iterable) -> Tensor:
    """One float tensor [N, C, H, W] or [N, D] of at least 8 finite images."""
    if not isinstance(images, Tensor):
        parts = [part[0] if isinstance(part, (tuple, list)) else part for part in images]
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise UsageError("images must be a tensor [N, C, H, W] or an iterable of such batches, and not empty")
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            sizes = " and ".join(sorted(str(list(shape)) for shape in shapes)[:2])
            raise UsageError(f"batches hold images of {sizes}; resize them to one size first")
        images = torch.cat(parts)
    shape = list(images.shape)
    if images.dim() not in (2, 4):
        raise UsageError(
            f"images have shape {shape}; they must be [N, C, H, W] (or [N, D]): a single image is image[None]"
        )
    if len(images) < LEAST:
        raise UsageError(
            f"{len(images)} image(s) given; a diagnosis needs at least {LEAST}, half to fit and half to score"
        )
    if images.is_complex():
        raise UsageError("images are complex; give real numbers, for example their real and imaginary part as channels")
    images = images.detach() if images.is_floating_point() else images.float() / 255
    broken = [i for i, image in enumerate(images) if not image.isfinite().all()]
    if broken:
        raise UsageError(f"image {broken[0]} (of {len(broken)}) holds NaN or infinite values; clean the input first")
    if (images == images[:1]).all():
        raise UsageError("all images are the same; a diagnosis needs different ones to tell them apart")
    return images


def view(images: Tensor, decoder: Decoder) -> Tensor:
    """What is read back: [N, C, V, V], images averaged down to the decoder's view; vectors [N, D] as [N, D, 1, 1]."""
    if images.dim() == 2:
        return images[:, :, None, None].float().cpu()
    return F.adaptive_avg_pool2d(images.float(), decoder.view).cpu()


def batches(images: Tensor, batch_size: int, draws: int, seed: int) -> Iterator[Batch]:
    """Batches of nearly equal size, each image with `draws` unrelated partners of its half (even or odd numbers)."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(len(images))
    partners = number[:, None].repeat(1, 1 + draws)
    for half in (0, 1):
        mine = number[half::2]
        for draw in range(1, 1 + draws):
            order = mine[torch.randperm(len(mine), generator=generator)]
            partners[order, draw] = order.roll(1)  # a cycle: nobody is its own partner
    size = tuple(images.shape[-2:]) if images.dim() == 4 else (1, 1)
    for index in number.tensor_split(-(-len(images) // batch_size)):
        shuffles = torch.stack([torch.randperm(len(index), generator=generator) for _ in range(draws)])
        yield Batch(index, partners[index], measures.gram(images[index].cpu()), shuffles, size)


def run_model(model: nn.Module, images: Tensor, watch: AbstractContextManager[list[str]]) -> list[Tensor]:
    """Run `model` under `watch` on its own device and dtype; the floating-point tensors of whatever it returns."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    images = images if like is None else images.to(like.device, like.dtype)
    entered: list[str] = []
    try:
        with watch as entered:
            return list(tensors(model(images)))
    except (RunError, UsageError):
        raise
    except Exception as error:
        place = f"in or after {entered[-1] or '(model)'!r}" if entered else "before any module"
        text = str(error).strip().splitlines() or [""]
        raise RunError(
            f"{type(model).__name__} raised {place} on images {list(images.shape)}: {type(error).__name__}: {text[0]}"
        ) from error


def tensors(output: object) -> Iterator[Tensor]:
    """Every floating-point tensor in tuples, lists, dicts and objects with attributes (dataclasses of outputs)."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from tensors(item)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from tensors(item)
    elif hasattr(output, "__dict__"):
        yield from tensors(vars(output))
