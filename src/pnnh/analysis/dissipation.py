"""Diagnose any model: how much of its input is left after each activation, with theory and noise floor beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pnnh import theory
from pnnh._errors import UsageError
from pnnh._modules import left_as_found, unwrap
from pnnh.analysis import measures
from pnnh.analysis.decoder import Decoder, Readout, Targets, sketch
from pnnh.analysis.inputs import as_images, batches, run_model, view
from pnnh.analysis.lineage import Lineage, Prediction
from pnnh.analysis.probe import Call, probe
from pnnh.analysis.tally import Batch, Tally, as_map, by_units

NAN = math.nan
DEVIATIONS = ("mean_z", "square_z", "survival_z")
FLOOR_WIDTH = 2.0  # the floor's band is its mean +- so many standard deviations over the draws


@dataclass(frozen=True)
class Layer:
    """One activation call. Shares lie in [0, 1]; NaN stands for what could not be measured.

    survival: share of positive inputs; dead: share of units never positive over all images; effective_rank: of the
    sketched features (at most rank_limit); cka, r2, psnr (dB), ssim: to the input, each with its noise floor and the
    floor's upper edge (`_high`); dists: distance of the picture read back to the input, and the floor's lower edge
    (`_low`), NaN unless asked for; cosine: mean correlation of the features of two images; gradient: norm at the
    features; growth: that norm over the next layer's. theory_*: the matching row of `pnnh.theory`; *_z: what was
    measured lies so many standard errors above it; agrees: at most 3 of them in mean, mean square and survival.
    """

    depth: int
    layer: str
    op: str
    shape: tuple[int, ...]
    survival: float
    dead: float
    mean: float
    variance: float
    effective_rank: float
    rank_limit: int
    cka: float
    cka_floor: float
    cka_high: float
    r2: float
    r2_floor: float
    r2_high: float
    psnr: float
    psnr_floor: float
    psnr_high: float
    ssim: float
    ssim_floor: float
    ssim_high: float
    dists: float
    dists_floor: float
    dists_low: float
    cosine: float
    gradient: float
    growth: float
    theory: str
    theory_mean: float
    theory_variance: float
    theory_survival: float
    bound: float
    theory_growth: float
    mean_z: float
    square_z: float
    survival_z: float
    agrees: bool | None
    caveat: str


@dataclass(frozen=True, eq=False)
class Dissipation:
    """The diagnosis of one model.

    pictures: [layers, P, C, V, V] what each layer's decoder reads back of the first P originals [P, C, V, V];
    correlation: [layers, BINS] mean correlation of the features of image pairs, by the pair's input correlation (bins
    over [-1, 1], NaN where no pair fell); settings: how it was measured.
    """

    model: str
    layers: tuple[Layer, ...]
    originals: Tensor
    pictures: Tensor
    correlation: Tensor
    settings: dict[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per layer."""
        rows = ({**asdict(layer), "shape": "x".join(map(str, layer.shape))} for layer in self.layers)
        return [{"model": self.model, **row} for row in rows]

    @property
    def dissipation_depth(self) -> int | None:
        """`crossing("r2")`: from here on a linear decoder reads the input no better than unrelated pictures."""
        return self.crossing("r2")

    def crossing(self, measure: str) -> int | None:
        """The first depth from which on no layer's `measure` (r2, cka, psnr, ssim, dists) leaves its floor; else None.

        A layer beside the trunk (squeeze and excitation) that reads little is no crossing while later layers read more.
        """
        found = None
        for layer in reversed(self.layers):
            value = getattr(layer, measure)
            if value < layer.dists_low if measure == "dists" else value > getattr(layer, f"{measure}_high"):
                break
            found = layer.depth
        return found

    @property
    def gradient_growth(self) -> float:
        """Norm of the gradient at the first layer's features over that at the last's."""
        return self.layers[0].gradient / self.layers[-1].gradient if self.layers[-1].gradient else NAN


def diagnose(
    model: nn.Module,
    images: Tensor | Iterable,
    *,
    training: bool | None = None,
    batch_size: int = 16,
    decoder: Decoder | None = None,
    draws: int = 8,
    pictures: int = 6,
    gradient: bool = True,
    dists: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Dissipation:
    """Measure every activation of `model` on `images`, streaming: memory does not grow with the number of images.

    Args:
        model: any module that takes a batch of images (or of vectors); it is left exactly as found.
        images: [N, C, H, W] or [N, D], N >= 8, or an iterable of such batches (labels in tuples are ignored); cast to
            the model's device and dtype.
        training: run in train or eval mode; None runs as found. Untrained nets with batch norm are only normalised in
            train mode, by each batch's statistics.
        batch_size: images a forward pass; the gradient of a random readout of the output is taken on the first batch.
        decoder: how layers are read back; draws: unrelated pairings behind the noise floor.
        pictures: how many are kept as read back; gradient: whether to run backward; seed: of everything random here.
        dists: a distance [B] of pictures [B, 3, H, W] in [0, 1], `load_dists(file)`; None leaves its columns NaN.

    Raises:
        UsageError: too few, wrong or non-finite images; no activation ran. RunError: the model raised, or an activation
            is not finite (the message names the layer).
    """
    inner = unwrap(model)
    images = as_images(images)
    if batch_size < 8 or draws < 2:
        raise UsageError(f"batch_size = {batch_size}, draws = {draws}: they must be at least 8 and 2")
    decoder = (decoder or Decoder()).fit_to(*(images.shape[-2:] if images.dim() == 4 else (1, 1)))
    targets = Targets(view(images, decoder), decoder)
    if dists is not None and len(targets.mean) not in (1, 3):
        raise UsageError(f"images have {len(targets.mean)} channels; DISTS compares pictures of 1 or 3")
    stream = list(batches(images, batch_size, draws, seed))
    with left_as_found(inner, training):
        torch.manual_seed(seed)
        tallies = _measure(inner, images, stream, targets)
        pixels = targets.mean.numel()
        readouts = {key: tally.pairs.solve(decoder.ridges, pixels) for key, tally in tallies.items()}
        shown, likeness = _read_back(inner, images, stream, targets, readouts, pictures, dists)
        gradients = _gradients(inner, images[:batch_size], seed) if gradient else {}
    layers = tuple(
        _layer(depth, tally, readouts[key], likeness.get(key), gradients.get(key, NAN), targets.value_range)
        for depth, (key, tally) in enumerate(tallies.items(), 1)
    )
    settings = {"images": len(images), "image_shape": list(images.shape[1:]), "batch_size": batch_size, "draws": draws}
    settings |= {"seed": seed, "mode": _mode(inner, training), "decoder": asdict(decoder), "dists": dists is not None}
    return Dissipation(
        name or type(inner).__name__,
        _with_growth(layers),
        targets.pictures[:pictures],
        torch.stack([shown[key] for key in tallies]),
        torch.stack([tally.correlation[1] / tally.correlation[0] for tally in tallies.values()]),
        settings,
    )


def _measure(model: nn.Module, images: Tensor, stream: list[Batch], targets: Targets) -> dict[tuple, Tally]:
    """First pass: every sum of every layer."""
    tallies: dict[tuple, Tally] = {}
    for batch in stream:
        lineage = Lineage()

        def see(call: Call, batch=batch, lineage=lineage) -> None:
            key = (call.path, call.nth)
            tally = tallies.setdefault(key, Tally(call.name, call.op))
            tally.add(call, batch, targets, lineage.before(call), lineage.channels_last)

        with torch.no_grad():
            run_model(model, images[batch.index], probe(model, see, lineage.note))
    seen = {key: tally for key, tally in tallies.items() if tally.shape}
    if not seen:
        raise UsageError(
            f"no activation function ran inside {type(model).__name__}: only calls through torch's own functions and "
            "modules are seen, not ScriptModules or custom kernels"
        )
    return seen


def _read_back(model, images: Tensor, stream: list[Batch], targets: Targets, readouts: dict, count: int, dists):
    """Second pass: by layer, pictures of the first `count` images, and [2, 1 + 3] mean SSIM and DISTS with draws."""
    shown = {key: torch.full((min(count, len(images)), *targets.mean.shape), NAN) for key in readouts}
    sums: dict[tuple, Tensor] = {}

    for batch in stream:
        lineage = Lineage()

        def see(call: Call, batch=batch, lineage=lineage) -> None:
            readout: Readout | None = readouts.get((call.path, call.nth))
            after = by_units(call.after.detach(), len(batch.index), lineage.channels_last)
            if readout is None or after is None:
                return
            sketched = sketch(as_map(after.float(), batch.size), targets.decoder).cpu()
            half = (batch.index % 2).bool()[:, None, None, None]
            read = targets.compose(torch.where(half, readout.read(sketched, 1), readout.read(sketched, 0)))
            key = (call.path, call.nth)
            first = batch.index < count
            shown[key][batch.index[first]] = read[first]
            partners = batch.partners[:, :4]
            pair = read.repeat_interleave(partners.shape[1], 0), targets.pictures[partners].flatten(0, 1)
            alike = measures.ssim(*pair, targets.value_range)
            far = torch.full_like(alike, NAN) if dists is None else dists(*map(targets.as_rgb, pair))
            found = torch.stack([alike, far]).unflatten(1, partners.shape)
            sums[key] = sums.get(key, 0) + found.sum(1) / len(images)

        with torch.no_grad():
            run_model(model, images[batch.index], probe(model, see, lineage.note_layout))
    return shown, sums


def _gradients(model: nn.Module, images: Tensor, seed: int) -> dict[tuple, float]:
    """Norm of the gradient of a random readout of the output at every activation's output; {} without a gradient."""
    norms: dict[tuple, float] = {}
    inside: list[Call] = []  # a custom autograd function: its output gets a gradient only once it is left

    def follow(call: Call) -> None:
        key = (call.path, call.nth)
        call.after.register_hook(lambda g: norms.__setitem__(key, g.detach().float().norm().item()))

    def see(call: Call) -> None:
        if call.after.requires_grad:
            follow(call)
        else:
            inside.append(call)

    with torch.enable_grad():
        images = images.detach().clone().requires_grad_()
        outputs = run_model(model, images, probe(model, see))
        for call in inside:
            if call.after.requires_grad:
                follow(call)
        generator = torch.Generator().manual_seed(seed)
        outputs = [output for output in outputs if output.requires_grad]
        if outputs:
            readouts = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
            torch.autograd.grad(outputs, [images], readouts, allow_unused=True)
    return norms


def _layer(depth: int, tally: Tally, readout: Readout | None, alike, gradient: float, value_range: float) -> Layer:
    likeness = [(NAN, torch.tensor([]))] * 2 if alike is None else [(row[0].item(), row[1:]) for row in alike]
    mean, square, alive = tally.unit_means()
    covariance = tally.pairs.covariance()
    cka, cka_draws = tally.cka()
    noise = [measures.psnr(mse, value_range) for mse in readout.mse_draws.tolist()] if readout else []
    nothing = torch.tensor([])
    seen = tally.correlation.sum(1)
    return Layer(
        depth=depth,
        layer=tally.name,
        op=tally.op,
        shape=tally.shape,
        survival=alive.mean().item(),
        dead=(tally.alive == 0).double().mean().item(),
        mean=mean.mean().item(),
        variance=max((square.mean() - mean.mean() ** 2).item(), 0.0),
        effective_rank=measures.effective_rank(covariance),
        rank_limit=len(covariance),
        **_with_floor("cka", cka, cka_draws),
        **_with_floor("r2", readout.r2 if readout else NAN, readout.r2_draws if readout else nothing),
        **_with_floor("psnr", measures.psnr(readout.mse, value_range) if readout else NAN, torch.tensor(noise)),
        **_with_floor("ssim", *likeness[0]),
        **_with_floor("dists", *likeness[1], above=False),
        cosine=(seen[1] / seen[0]).item(),
        gradient=gradient,
        growth=NAN,
        **_theory(tally, (mean, square, alive)),
    )


def _with_floor(measure: str, value: float, draws: Tensor, above: bool = True) -> dict[str, float]:
    """The three columns of a measure; the floor's edge is the one towards the truth."""
    floor, width = (draws.mean().item(), FLOOR_WIDTH * draws.std().item()) if len(draws) > 1 else (NAN, NAN)
    edge = {f"{measure}_high": floor + width} if above else {f"{measure}_low": floor - width}
    return {measure: value, f"{measure}_floor": floor, **edge}


def _theory(tally: Tally, units: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """The theory columns. Units are independent given the layer's input: they give the measurement's standard error."""
    known = [p for p in tally.predictions if p is not None]
    if len(known) != len(tally.predictions):
        columns = ("theory_mean", "theory_variance", "theory_survival", "bound", "theory_growth", *DEVIATIONS)
        caveat = "no row of the theory matches how this was made"
        return {"theory": "", **dict.fromkeys(columns, NAN), "agrees": None, "caveat": caveat}
    responses = [p.response for p in known]
    mean = sum(r.mean for r in responses) / len(known)
    square = sum(r.variance + r.mean**2 for r in responses) / len(known)
    survival, bound = sum(p.survival for p in known) / len(known), sum(p.bound for p in known) / len(known)
    expected, slack = (mean, square, survival), (1e-4 * square**0.5, 1e-3 * square, 1e-3)
    deviations = [_deviation(*each) for each in zip(units, expected, slack, strict=True)]
    first: Prediction = known[0]
    uniform = first.row == "normalised" and tally.op == "relu" and first.response.variance > 0
    shift = first.response.mean / math.sqrt(first.response.variance) if uniform else 0.0
    return {
        "theory": first.row,
        "theory_mean": mean,
        "theory_variance": square - mean**2,
        "theory_survival": survival,
        "bound": bound,
        "theory_growth": math.sqrt(theory.chi(shift)) if uniform else NAN,
        **dict(zip(DEVIATIONS, deviations, strict=True)),
        "agrees": all(abs(z) <= 3 for z in deviations) if len(units[0]) > 1 else None,
        "caveat": first.caveat,
    }


def _deviation(units: Tensor, expected: float, slack: float) -> float:
    """Standard errors from `expected` to the mean over the units, after a slack for rounding; NaN for one unit."""
    gap = units.mean().item() - expected
    gap = math.copysign(max(0.0, abs(gap) - slack), gap)
    error = units.std().item() / math.sqrt(len(units)) if len(units) > 1 else NAN
    return gap / error if error else math.copysign(math.inf, gap) if gap else 0.0


def _with_growth(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Fill in each layer's gradient over the next one's."""
    nexts = [*(layer.gradient for layer in layers[1:]), NAN]
    return tuple(
        replace(layer, growth=layer.gradient / after if after else NAN)
        for layer, after in zip(layers, nexts, strict=True)
    )


def _mode(model: nn.Module, training: bool | None) -> str:
    return {None: "as found: train" if model.training else "as found: eval", True: "train", False: "eval"}[training]
