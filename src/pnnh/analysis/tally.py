"""What is kept of one layer while batches stream by: sums, never activations.

Legend: B images of a batch, C units (channels), S positions, g cells a side, R draws of the noise floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pnnh._errors import RunError
from pnnh.analysis import measures
from pnnh.analysis.decoder import Pairs, Targets, sketch
from pnnh.analysis.lineage import Prediction
from pnnh.analysis.probe import Call

BINS = 20  # of input correlation, over [-1, 1]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one forward pass.

    index [B]: which ones; partners [B, 1 + R]: each one itself, then R unrelated ones of its half; gram [B, B] of the
    inputs; shuffles [R, B]: the batch in unrelated orders; size: (H, W) of the images.
    """

    index: Tensor
    partners: Tensor
    gram: Tensor
    shuffles: Tensor
    size: tuple[int, int]


def by_units(values: Tensor, images: int, channels_last: bool) -> Tensor | None:
    """[B, C, ...] with the units second, whatever the layout; None if `values` do not run over the images."""
    if values.dim() < 2:
        return None
    if len(values) != images:
        if values.dim() == 3 and values.shape[1] == images:
            values = values.transpose(0, 1)  # sequence first
        elif len(values) % images == 0 and len(values):
            values = values.unflatten(0, (images, -1))  # windows or groups, image by image
        else:
            return None
    return values.movedim(-1, 1) if channels_last else values


def as_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, ...] -> [B, C, h, w]: maps as they are, tokens laid out on the picture, anything else as one cell."""
    if values.dim() == 4:
        return values
    if values.dim() == 3:
        count = values.shape[2]
        for prefix in range(min(count, 9)):  # class and register tokens come first
            height = max(1, round(math.sqrt((count - prefix) * size[0] / size[1])))
            if (count - prefix) % height == 0 and (count - prefix) // height == round(height * size[1] / size[0]):
                return values[:, :, prefix:].unflatten(2, (height, -1))
    return values.flatten(1)[:, :, None, None]


@dataclass
class Tally:
    """One layer's running sums. `add` takes a call; the fields are read when the stream has ended."""

    name: str
    op: str
    shape: tuple[int, ...] = ()
    bytes: int = 0  # of the output, for one image
    count: int = 0
    mean: Tensor | float = 0.0  # [C], of the pre-activations
    square: Tensor | float = 0.0  # [C], sum of squared deviations
    alive: Tensor | float = 0.0  # [C], number of positive values
    pairs: Pairs = field(default_factory=Pairs)
    with_inputs: Tensor | float = 0.0  # [1 + R], HSIC of the features with the images, then with shuffled ones
    with_itself: Tensor | float = 0.0  # HSIC of the features
    of_inputs: Tensor | float = 0.0  # HSIC of the images
    correlation: Tensor = field(default_factory=lambda: torch.zeros(3, BINS, dtype=torch.float64))  # n, sum, square sum
    predictions: list[Prediction | None] = field(default_factory=list)

    def add(
        self, call: Call, batch: Batch, targets: Targets, prediction: Prediction | None, channels_last: bool
    ) -> None:
        """Take in one call. Raises RunError, naming the layer, if a value is not finite."""
        images = len(batch.index)
        before = by_units(call.before.detach(), images, channels_last)
        after = by_units(call.after.detach(), images, channels_last)
        if before is None or after is None:
            return
        self._moments(before.float())
        self.bytes = call.after.numel() * call.after.element_size() // images
        after = after.float()
        if not after.isfinite().all():
            raise RunError(f"activation {self.name!r} ({self.op}) gives NaN or infinite values")
        self.shape = tuple(after.shape[1:])
        self.predictions.append(prediction)
        self._similarity(after, batch)
        self._readable(after, batch, targets)

    def _moments(self, before: Tensor) -> None:
        values = before.transpose(0, 1).flatten(1)  # [C, B S]
        variance, mean = (part.double().cpu() for part in torch.var_mean(values, 1, correction=0))
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise RunError(f"the input of activation {self.name!r} ({self.op}) has NaN or infinite values")
        count, new = values.shape[1], self.count + values.shape[1]
        step = mean - self.mean
        self.square = self.square + variance * count + step**2 * (self.count * count / new)
        self.mean = self.mean + step * (count / new)
        self.alive = self.alive + (values > 0).sum(1).double().cpu()
        self.count = new

    def _similarity(self, after: Tensor, batch: Batch) -> None:
        own, of_input = measures.gram(after if after.device.type != "mps" else after.cpu()).cpu(), batch.gram
        shuffled = of_input[batch.shuffles[:, :, None], batch.shuffles[:, None, :]]  # [R, B, B]
        inputs = torch.cat([of_input[None], shuffled])
        features, images = measures.centred(own), measures.centred(of_input)
        self.with_inputs = self.with_inputs + measures.hsic(features.expand_as(inputs), inputs)
        self.with_itself = self.with_itself + measures.hsic(features, features)
        self.of_inputs = self.of_inputs + measures.hsic(images, images)
        before, now = measures.cosines(of_input), measures.cosines(own)
        seen = now.isfinite() & before.isfinite()
        place = ((before[seen] + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        now = now[seen]
        self.correlation.index_add_(1, place, torch.stack([torch.ones_like(now), now, now**2]))

    def _readable(self, after: Tensor, batch: Batch, targets: Targets) -> None:
        sketched = sketch(as_map(after, batch.size), targets.decoder).cpu()
        described, energy = targets.describe(batch.partners, tuple(sketched.shape[1:3]))
        for half in (0, 1):
            mine = batch.index % 2 == half
            if mine.any():
                self.pairs.add(half, sketched[mine], described[mine], energy[mine])

    def unit_means(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, mean square and survival of each unit [C]."""
        return self.mean, self.square / self.count + self.mean**2, self.alive / self.count

    def cka(self) -> tuple[float, Tensor]:
        """CKA to the input, and [R] of its floor."""
        energy = torch.as_tensor(self.with_itself * self.of_inputs)
        scale = energy.sqrt() if energy > 0 else torch.tensor(math.inf)  # features that do not vary tell nothing
        values = (torch.as_tensor(self.with_inputs) / scale).clamp(-1, 1)
        return values[0].item(), values[1:]
