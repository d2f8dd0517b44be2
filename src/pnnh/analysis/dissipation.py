"""Diagnose any model: how much of its input is left after each activation, with theory and noise floor beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from pnnh import theory
from pnnh._errors import UsageError
from pnnh._html import table
from pnnh._modules import left_as_found, paths, unwrap
from pnnh.analysis import measures, show
from pnnh.analysis.decoder import Decoder, Readout, Targets, sketch
from pnnh.analysis.inputs import as_images, batches, run_model, view
from pnnh.analysis.lineage import Lineage, Prediction
from pnnh.analysis.probe import Call, probe
from pnnh.analysis.tally import Batch, Tally, as_map, by_units

NAN = math.nan
DEVIATIONS = ("mean_z", "square_z", "survival_z")
ALPHA = 0.02  # chance that any layer of a net of pure noise rises above its floor


class Measure(float):
    """A similarity to the input, a number that knows the mean of the same with unrelated images and that noise's edge.

    edge: mean + (ln(layers / ALPHA) - 1) standard deviations over the draws: what exceeds it in any of so many layers
    is no noise, whose tail is taken to be no heavier than an exponential one (ours; docs/seeing-inputs-dissipate.md).
    """

    floor: float
    edge: float

    def __new__(cls, value: float, floor: float = NAN, edge: float = NAN) -> Measure:
        self = super().__new__(cls, value)
        self.floor, self.edge = floor, edge
        return self

    @property
    def value(self) -> float:
        return float(self)

    @property
    def above_noise(self) -> bool:
        return self > self.edge


@dataclass(frozen=True)
class Layer:
    """One activation call. Shares lie in [0, 1]; NaN stands for what could not be measured.

    survival: share of positive inputs; dead: share of units never positive over all images; effective_rank: of the
    sketched features (at most rank_limit); cka, r2, psnr (dB), ssim: to the input; cosine: mean correlation of the
    features of two images; gradient: norm at the features; growth: that norm over the next layer's; bytes: of the
    output, for one image. theory_*: the matching row of `pnnh.theory`; *_z: what was
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
    cka: Measure
    r2: Measure
    psnr: Measure
    ssim: Measure
    cosine: float
    gradient: float
    growth: float
    bytes: int
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

    def row(self) -> dict[str, Any]:
        """Flat: `r2`, `r2_floor`, `r2_high` of a measure, and the same of the others."""
        flat: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Measure):
                flat |= {field.name: value.value, f"{field.name}_floor": value.floor, f"{field.name}_high": value.edge}
            else:
                flat[field.name] = "x".join(map(str, value)) if field.name == "shape" else value
        return flat


@dataclass(frozen=True, eq=False)
class Dissipation:
    """The diagnosis of one model.

    pictures: [layers, P, C, V, V] what each layer's decoder reads back of the first P originals [P, C, V, V];
    correlation: [layers, BINS] mean correlation of the features of image pairs, by the pair's input correlation (bins
    over [-1, 1], NaN where no pair fell); settings: how it was measured; not_seen: non-linear functions that ran but
    that no row measures, and scripted modules.
    """

    model: str
    layers: tuple[Layer, ...]
    originals: Tensor
    pictures: Tensor
    correlation: Tensor
    settings: dict[str, Any]
    not_seen: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per layer."""
        return [{"model": self.model, **layer.row()} for layer in self.layers]

    def __repr__(self) -> str:
        depth = self.dissipation_depth
        left = f"nothing but noise from activation {depth} on" if depth else "never down to noise"
        r2 = self.layers[-1].r2.value
        missed = f"; not seen: {', '.join(self.not_seen)}" if self.not_seen else ""
        return f"<Dissipation of {self.model}: {len(self.layers)} activations, R2 {r2:.2f} at the last, {left}{missed}>"

    def _repr_html_(self) -> str:
        pictures = show.strip(self.originals, self.pictures)
        return f"<p>{escape(repr(self))}</p>{pictures}{table(show.columns(self.layers))}"

    def plot(self, axes: Any = None) -> Any:
        """Draw R2 of every activation over the edge of its noise; returns the matplotlib axes (new ones if None)."""
        return show.curve(self.model, self.layers, axes)

    @property
    def dissipation_depth(self) -> int | None:
        """`crossing("r2")`: from here on a linear decoder reads the input no better than unrelated pictures."""
        return self.crossing("r2")

    def crossing(self, measure: str) -> int | None:
        """The first depth from which on no layer's `measure` (r2, cka, psnr, ssim) leaves its floor; else None.

        A layer beside the trunk (squeeze and excitation) that reads little is no crossing while later layers read more.
        """
        first = None
        for layer in reversed(self.layers):
            if getattr(layer, measure).above_noise:
                break
            first = layer.depth
        return first

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

    Raises:
        UsageError: too few, wrong or non-finite images; no activation ran. RunError: the model raised, or an activation
            is not finite (the message names the layer).
    """
    inner = unwrap(model)
    images = as_images(images)
    if batch_size < 8 or draws < 2:
        raise UsageError(f"batch_size = {batch_size}, draws = {draws}: they must be at least 8 and 2")
    if pictures < 0:
        raise UsageError(f"pictures = {pictures} must be 0 or more: how many are kept as read back")
    decoder = (decoder or Decoder()).fit_to(*(images.shape[-2:] if images.dim() == 4 else (1, 1)))
    with torch.inference_mode(False), left_as_found(inner, training):
        targets = Targets(view(images, decoder), decoder)
        stream = list(batches(images, batch_size, draws, seed))
        torch.manual_seed(seed)
        tallies, unseen = _measure(inner, images, stream, targets)
        pixels = targets.mean.numel()
        readouts = {key: tally.pairs.solve(decoder.ridges, pixels) for key, tally in tallies.items()}
        shown, likeness = _read_back(inner, images, stream, targets, readouts, pictures)
        gradients = _gradients(inner, images[:batch_size], seed) if gradient else {}
    layers = tuple(
        _layer(depth, tally, readouts[key], likeness.get(key), gradients.get(key, NAN), targets.value_range)
        for depth, (key, tally) in enumerate(tallies.items(), 1)
    )
    settings = {"images": len(images), "image_shape": list(images.shape[1:]), "batch_size": batch_size, "draws": draws}
    settings |= {"seed": seed, "mode": _mode(inner, training), "decoder": asdict(decoder)}
    return Dissipation(
        name or type(inner).__name__,
        _with_growth(_edges(layers)),
        targets.pictures[:pictures],
        torch.stack([shown[key] for key in tallies]),
        torch.stack([tally.correlation[1] / tally.correlation[0] for tally in tallies.values()]),
        settings,
        unseen,
    )


def _measure(model: nn.Module, images: Tensor, stream: list[Batch], targets: Targets):
    """First pass: every sum of every layer, and what was not seen."""
    tallies: dict[tuple, Tally] = {}
    missed: dict[str, None] = {}
    for batch in stream:
        lineage = Lineage()

        def see(call: Call, batch=batch, lineage=lineage) -> None:
            key = (call.path, call.nth)
            tally = tallies.setdefault(key, Tally(call.name, call.op))
            tally.add(call, batch, targets, lineage.before(call), lineage.channels_last)

        with torch.no_grad():
            run_model(model, images[batch.index], probe(model, see, lineage.note, lambda op: missed.setdefault(op)))
    seen = {key: tally for key, tally in tallies.items() if tally.shape}
    if not seen:
        raise UsageError(
            f"no activation function ran inside {type(model).__name__}: only calls through torch's own functions and "
            f"modules are seen, not ScriptModules or custom kernels (not measured: {', '.join(missed) or 'none'})"
        )
    scripted = [
        path or "(model)" for module, path in paths(model).items() if isinstance(module, torch.jit.ScriptModule)
    ]
    return seen, (*missed, *(f"scripted module {path}" for path in scripted[:3]))


def _read_back(model, images: Tensor, stream: list[Batch], targets: Targets, readouts: dict, count: int):
    """Second pass: by layer, pictures of the first `count` images, and [1 + 3] mean SSIM with draws."""
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
            sums[key] = sums.get(key, 0) + alike.unflatten(0, partners.shape).sum(0) / len(images)

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
    mean, square, alive = tally.unit_means()
    covariance = tally.pairs.covariance()
    cka, cka_draws = tally.cka()
    noise = [measures.psnr(mse, value_range) for mse in readout.mse_draws.tolist()] if readout else []
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
        cka=_measured(cka, cka_draws),
        r2=_measured(readout.r2, readout.r2_draws) if readout else Measure(NAN),
        psnr=_measured(measures.psnr(readout.mse, value_range), torch.tensor(noise)) if readout else Measure(NAN),
        ssim=Measure(NAN) if alike is None else _measured(alike[0].item(), alike[1:]),
        cosine=(seen[1] / seen[0]).item(),
        gradient=gradient,
        growth=NAN,
        bytes=tally.bytes,
        **_theory(tally, (mean, square, alive)),
    )


def _measured(value: float, draws: Tensor) -> Measure:
    """A measure whose edge is still one standard deviation over the draws, for `_edges` to widen."""
    return Measure(value, draws.mean().item(), draws.std().item()) if len(draws) > 1 else Measure(value)


def _edges(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Put every noise floor's edge where one layer in ALPHA nets of noise would lie above it.

    A layer whose few draws happen to lie close together takes the root mean square deviation of all layers.
    """
    width = math.log(len(layers) / ALPHA) - 1

    def widened(name: str) -> list[Measure]:
        found = [getattr(layer, name) for layer in layers]
        known = [item.edge for item in found if math.isfinite(item.edge)]
        pooled = math.sqrt(sum(sd * sd for sd in known) / len(known)) if known else NAN
        return [Measure(item, item.floor, item.floor + width * max(item.edge, pooled)) for item in found]

    columns = {name: widened(name) for name in ("cka", "r2", "psnr", "ssim")}
    return tuple(
        replace(layer, **{name: column[place] for name, column in columns.items()})
        for place, layer in enumerate(layers)
    )


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
