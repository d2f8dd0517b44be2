"""A linear decoder from a layer's features back to the input, fitted and scored from streamed second moments.

The decoder is local: the picture is cut into a grid of cells, and one linear map, the same for all cells, goes from the
features in a cell and around it to the cell's patch of the picture. Legend: B images, C channels, g cells a side,
P = g * g, D sketched features of a cell with its neighbours, T numbers that describe a patch, R draws of the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Decoder:
    """How a layer is read back.

    view: pixels a side of the picture to read back (the input, averaged down); grid: cells a side at most;
    features: numbers kept of each cell (more are projected by a fixed random map), its 8 neighbours come on top;
    components: a patch of more numbers is described by so many of its principal components;
    ridges: penalties tried, in units of the features' mean variance.
    """

    view: int = 32
    grid: int = 8
    features: int = 64
    components: int = 192
    ridges: tuple[float, ...] = (1e-4, 1e-2, 1.0, 100.0)

    def fit_to(self, height: int, width: int) -> Decoder:
        """The same for inputs of this size: a grid that the usual strides of 2 divide, a view that the grid divides."""
        size = min(height, width)
        grid = size // 32 if size % 32 == 0 and size // 32 in (5, 6, 7) else min(self.grid, size)
        view = grid * max(1, min(self.view, size) // grid)
        return Decoder(view, grid, self.features, self.components, self.ridges)

    def cells(self, size: int) -> int:
        """Cells along an axis of `size` positions: the least divisor of the view that is enough, at most `grid`."""
        return min((d for d in range(1, self.grid + 1) if self.view % d == 0 and d >= min(size, self.grid)), default=1)


def sketch(features: Tensor, decoder: Decoder) -> Tensor:
    """[B, C, H, W] -> [B, g, g, D]: each cell's content, projected if need be, with its neighbours' (zeros outside)."""
    cells = tuple(decoder.cells(size) for size in features.shape[-2:])
    size = tuple(math.ceil(s / g) * g for s, g in zip(features.shape[-2:], cells, strict=True))
    if size != tuple(features.shape[-2:]):
        features = F.interpolate(features, size=size, mode="nearest-exact")
    content = features.unflatten(3, (cells[1], -1)).unflatten(2, (cells[0], -1))  # [B, C, g, h, g, w]
    content = content.permute(0, 2, 4, 1, 3, 5).flatten(3)
    room = decoder.features * (9 if cells == (1, 1) else 1)
    if content.shape[-1] > room:
        content = content @ _projection(content.shape[-1], room).to(content)
    if cells == (1, 1):
        return content
    around = F.unfold(content.permute(0, 3, 1, 2), 3, padding=1)  # [B, D, P]
    return around.transpose(1, 2).unflatten(1, cells)


def _projection(rows: int, columns: int) -> Tensor:
    """A random map that depends on its shape only, so that every batch and every layer of a shape uses the same."""
    generator = torch.Generator().manual_seed(rows * 1_000_003 + columns)
    return torch.randn(rows, columns, generator=generator) / math.sqrt(rows)


class Targets:
    """The pictures to read back, and the numbers that describe a patch of them, for any grid.

    pictures: [N, C, V, V] of all images. One is made per diagnosis; patches are relative to the mean picture.
    """

    def __init__(self, pictures: Tensor, decoder: Decoder):
        self.decoder, self.pictures = decoder, pictures
        self.mean = pictures.mean(0)
        self.value_range = (pictures.max() - pictures.min()).item()
        self._bases: dict[tuple[int, int], Tensor | None] = {}

    def describe(self, index: Tensor, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Patches of the pictures `index` [...] as [..., g, g, T], and their total energy [...]."""
        centred = self.pictures[index] - self.mean
        patches = self._patches(centred, cells)
        basis = self._basis(cells)
        return (patches if basis is None else patches @ basis), centred.square().sum((-3, -2, -1))

    def compose(self, described: Tensor) -> Tensor:
        """[B, g, g, T] -> pictures [B, C, V, V]."""
        cells = described.shape[1], described.shape[2]
        basis = self._basis(cells)
        patches = described if basis is None else described @ basis.T
        channels, height, width = self.mean.shape
        patches = patches.unflatten(-1, (channels, height // cells[0], width // cells[1]))
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width) + self.mean

    def as_rgb(self, pictures: Tensor) -> Tensor:
        """[B, C, V, V] of 1 or 3 channels -> [B, 3, V, V] in [0, 1], by the range of all pictures."""
        return ((pictures - self.pictures.min()) / self.value_range).clamp(0, 1).expand(-1, 3, -1, -1)

    def _patches(self, pictures: Tensor, cells: tuple[int, int]) -> Tensor:
        """[..., C, V, V] -> [..., g, g, C h w]."""
        parts = pictures.unflatten(-1, (cells[1], -1)).unflatten(-3, (cells[0], -1))  # [..., C, g, h, g, w]
        return parts.transpose(-3, -2).movedim(-5, -3).flatten(-3)

    def _basis(self, cells: tuple[int, int]) -> Tensor | None:
        """[patch, T] principal components over all pictures, or None where the patch is small enough as it is."""
        if cells not in self._bases:
            patches = self._patches(self.pictures - self.mean, cells).flatten(0, 2)
            room = self.decoder.components
            small = patches.shape[1] <= room
            self._bases[cells] = None if small else torch.linalg.svd(patches, full_matrices=False)[2][:room].T
        return self._bases[cells]


@dataclass(frozen=True, eq=False)
class Readout:
    """What the decoder reads. r2, mse: of the true pairs; r2_draws, mse_draws [R]: of features with unrelated pictures.

    weight [2, D, T]: the decoder fitted on either half (for the pictures of the other); sketch [2, g, g, D], patch
    [2, g, g, T]: the means of either half, about which it reads.
    """

    r2: float
    mse: float
    r2_draws: Tensor
    mse_draws: Tensor
    weight: Tensor
    sketch: Tensor
    patch: Tensor

    def read(self, sketched: Tensor, half: int) -> Tensor:
        """Sketches [B, g, g, D] of images of `half` -> described patches, by the decoder fitted on the other half."""
        return (sketched - self.sketch[half]) @ self.weight[1 - half] + self.patch[half]


class Pairs:
    """Streamed second moments of (sketch, patch) pairs in two halves; draw 0 is the truth, the others are unrelated.

    Each half is taken about its own mean, cell by cell: what all pictures share (brighter skies, darker edges) is
    neither credited to the layer nor held against it, and no half learns of the other.
    """

    def __init__(self):
        self.halves: list[_Half] = []

    def add(self, half: int, sketched: Tensor, described: Tensor, energy: Tensor) -> None:
        """sketched [B, g, g, D]; described [B, 1 + R, g, g, T]; energy [B, 1 + R]."""
        if not self.halves:
            self.shift = sketched.mean(0)  # of the first batch: sums of what is left do not cancel
            self.scale = (sketched - self.shift).abs().max().item() or 1.0  # and no square leaves the range
            self.halves = [_Half(), _Half()]
        self.halves[half].add(((sketched - self.shift) / self.scale).flatten(1, 2), described.flatten(2, 3), energy)

    def covariance(self) -> Tensor:
        """[D, D] of the sketches of a cell, in units of their scale; float64."""
        moments = [half.moments() for half in self.halves if half.images]
        return sum(half.zz for half in moments) / sum(half.count for half in moments)

    def solve(self, ridges: tuple[float, ...], pixels: int) -> Readout | None:
        """Fit on each half, score on the other, keep the ridge that is best for the truth; None without data in both.

        One candidate ignores the features, so that no R² is below 0, however far outliers mislead the others.
        `pixels`: numbers in one picture, which turns energies into mean square errors.
        """
        if not all(half.images for half in self.halves):
            return None
        first, second = (half.moments() for half in self.halves)
        fits = [half.fits(ridges) for half in (first, second)]
        excess = torch.stack([second.excess(w) for w in fits[0]]) + torch.stack([first.excess(w) for w in fits[1]])
        energy = first.energy + second.energy  # [1 + R]
        error = energy + excess  # what the components leave out is lost as well
        best = error.argmin(0)  # every draw chooses its own ridge, as the truth does
        error = error.gather(0, best[None])[0]
        r2, mse = 1 - error / energy, error / (pixels * sum(half.images for half in self.halves))
        weight = (torch.stack([fit[best[0]][0] for fit in fits]) / self.scale).float()
        cells = self.shift.shape[:2]
        means = [half.z.unflatten(0, cells) * (self.scale / half.images) for half in self.halves]
        sketch = torch.stack([self.shift + mean for mean in means])
        patch = torch.stack([half.y[0].unflatten(0, cells) / half.images for half in self.halves])
        return Readout(r2[0].item(), mse[0].item(), r2[1:], mse[1:], weight, sketch, patch)


class _Half:
    """Sums over the pictures of one half, of sketches z [B, P, D] and patches y [B, 1 + R, P, T]."""

    def __init__(self):
        self.images = 0
        self.zz = self.zy = self.z = self.y = self.energy = 0.0

    def add(self, z: Tensor, y: Tensor, energy: Tensor) -> None:
        flat = z.flatten(0, 1)
        self.zz = self.zz + flat.T @ flat  # [D, D]
        self.zy = self.zy + torch.einsum("bpd,brpt->rdt", z, y)  # [1 + R, D, T]
        self.z, self.y = self.z + z.sum(0), self.y + y.sum(0)  # [P, D], [1 + R, P, T]
        self.energy = self.energy + energy.double().sum(0)
        self.images += len(z)

    def moments(self) -> Moments:
        z, y = self.z.double(), self.y.double()
        shared = y.square().sum((1, 2)) / self.images
        zz = self.zz.double() - z.T @ z / self.images
        zy = self.zy.double() - torch.einsum("pd,rpt->rdt", z, y) / self.images
        count = self.images * len(z)
        rounding = torch.finfo(torch.float32).eps * self.zz.diagonal().mean().item() / count
        return Moments(zz, zy, self.energy - shared, count, rounding)


@dataclass(frozen=True, eq=False)
class Moments:
    """Of `count` cells about their means: zz [D, D], zy [1 + R, D, T], energy [1 + R]; float64.

    rounding: the variance below which there is only what single precision left of a difference of sums.
    """

    zz: Tensor
    zy: Tensor
    energy: Tensor
    count: int
    rounding: float

    def fits(self, ridges: tuple[float, ...]) -> list[Tensor]:
        """For each ridge, and for one without end, weight [1 + R, D, T] of y = z W."""
        values, vectors = torch.linalg.eigh(self.zz / self.count)
        values = values.clamp(min=0)
        cross = vectors.T @ (self.zy / self.count)
        least = self.rounding + torch.finfo(torch.float64).tiny
        fits = [vectors @ (cross / (values + ridge * values.mean() + least)[:, None]) for ridge in ridges]
        return [*fits, torch.zeros_like(cross)]

    def excess(self, weight: Tensor) -> Tensor:
        """By how much the square errors [1 + R] of y = z W over these cells exceed those of y = 0, in closed form."""
        return (weight * (self.zz @ weight - 2 * self.zy)).sum((1, 2))
