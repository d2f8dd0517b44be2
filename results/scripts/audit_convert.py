"""Random networks through `convert` and `fuse`, compared where their proofs did not look: results/audit-convert.json.

    python results/scripts/audit_convert.py [--nets 500] [--fusions 1000] [--seed 0]

A twin (a fused net) is wrong if its outputs differ from the source's on new images, at other batch sizes, or (fused
nets) other image sizes; if it answers for another image size where it cannot (twins must agree or raise); if the source
is not as it was; or if anything but UsageError or RunError is raised. Refusals are counted by their first words.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models.byobnet import RepVggBlock
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pnnh._errors import RunError, UsageError
from pnnh.convert import convert, fuse
from pnnh.convert.equivalence import agreement
from pnnh.layers import AlternatingStage, NormHead, PipelinedStage, PlainOptions
from pnnh.provenance import environment

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1e-8  # relative, in float64


def seen(net: nn.Module, draw: random.Random) -> nn.Module:
    """Norms with statistics of their own, float64, eval mode."""
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.num_batches_tracked.fill_(7)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return net.double().eval()


# Random residual nets


class Residual(nn.Module):
    """One residual block of a random kind on `width` channels; strided blocks double them."""

    def __init__(self, draw: random.Random, width: int):
        super().__init__()
        self.stride = draw.choice([1, 1, 2])
        out, groups = width * self.stride, draw.choice([1, 1, 2])
        self.act = draw.choice(
            [nn.ReLU(), nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Hardtanh(0, 2)]
        )
        self.conv1 = nn.Conv2d(width, out, 3, self.stride, 1, bias=draw.random() < 0.5)
        self.norm1 = nn.BatchNorm2d(out) if draw.random() < 0.7 else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, groups=groups)
        self.norm2 = nn.BatchNorm2d(out) if draw.random() < 0.7 else nn.Identity()
        self.kind = draw.choice(["project", "pool", "pad"])
        self.short = {
            "project": nn.Conv2d(width, out, 1, self.stride),
            "pool": nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, out, 1)),
            "pad": nn.Identity(),
        }[self.kind if self.stride > 1 else "pad"]
        self.alpha, self.last, self.cast = draw.choice([1, 1, -1, 0.5]), draw.random() < 0.7, draw.random() < 0.2
        self.twice, self.clip = draw.random() < 0.2, draw.choice([None, None, None, (None, 1.0), (-1.0, None)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x.float().to(x.dtype) if self.cast else x))
        y = self.conv2(self.act(y))
        y = self.norm2(self.conv2(self.act(y)) if self.twice else y)
        short = self.short(x)
        if self.stride > 1 and self.kind == "pad":
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
        y = torch.add(short, y, alpha=self.alpha)
        y = self.act(y) if self.last else y
        return y if self.clip is None else y.clamp(*self.clip)


class Net(nn.Module):
    """A stem, up to three blocks, and a random end: pooled, not pooled, or several outputs."""

    def __init__(self, draw: random.Random):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1) if draw.random() < 0.2 else nn.Identity()
        blocks, width = [], 4
        for _ in range(draw.randint(1, 3)):
            blocks.append(Residual(draw, width))
            width *= blocks[-1].stride
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(width, 3)
        self.drop, self.end = nn.Dropout(0.5), draw.choice(["logits", "logits", "maps", "tuple", "dict", "resized"])

    def forward(self, x: Tensor):
        maps = [self.pool(self.stem(x))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        logits = self.head(self.drop(maps[-1].mean((2, 3))))
        if self.end == "resized":
            return F.interpolate(maps[-1], size=x.shape[-2:])
        return {
            "logits": logits,
            "maps": maps[-1],
            "tuple": (logits, maps[-1]),
            "dict": {"out": logits, "aux": maps[1]},
        }[self.end]


# Random nets to fuse


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Doubling(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Shifted(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Tapped(nn.Module):
    """Reads the layers of its Sequential by number."""

    def __init__(self, chain: nn.Sequential, taps: set[int]):
        super().__init__()
        self.chain, self.taps = chain, taps

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for number, layer in enumerate(self.chain):
            x = layer(x)
            total = total + x if number in self.taps else total
        return x + total


class Shared(nn.Module):
    """One convolution in two chains, each with a norm of its own."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.first, self.second = nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).relu() - self.second(x)


def conv_of(draw: random.Random) -> nn.Conv2d:
    kind = draw.choice([nn.Conv2d, nn.Conv2d, nn.Conv2d, Standardised])
    dilation, size = draw.choice([1, 2]), draw.choice([1, 3])
    modes = {"padding_mode": draw.choice(["zeros", "zeros", "circular", "replicate"]), "groups": draw.choice([1, 2, 4])}
    conv = kind(4, 4, size, padding=dilation * (size // 2), dilation=dilation, bias=draw.random() < 0.5, **modes)
    wrap = draw.choice([None] * 6 + ["weight_norm", "old weight_norm", "spectral_norm", "prune", "hook"])
    if wrap == "weight_norm":
        return parametrizations.weight_norm(conv)
    if wrap == "old weight_norm":
        return nn.utils.weight_norm(conv)
    if wrap == "spectral_norm":
        return nn.utils.spectral_norm(conv)
    if wrap == "prune":
        return prune.l1_unstructured(conv, "weight", 0.5)
    if wrap == "hook":
        conv.register_forward_hook(lambda module, inputs, output: output * 1.5)
    return conv


def chain_of(draw: random.Random) -> nn.Module:
    kind = draw.choice([nn.Sequential, nn.Sequential, nn.Sequential, Doubling])
    norm = draw.choice([nn.BatchNorm2d, nn.BatchNorm2d, Shifted, lambda width: nn.BatchNorm2d(width, affine=False)])
    layers = [conv_of(draw), norm(4), draw.choice([nn.ReLU(), nn.SiLU(), nn.ReLU(inplace=True)])]
    if draw.random() < 0.3:
        layers.insert(draw.randrange(3), nn.Dropout(0.1))
    return kind(*layers)


def part_of(draw: random.Random) -> nn.Module:
    kind = draw.choice(["chain", "chain", "stage", "stage", "timm", "tapped", "shared", "residual"])
    if kind == "stage":
        options = PlainOptions(
            act=draw.choice([nn.ReLU, nn.SiLU]), groups=draw.choice([1, 2]), dilation=draw.choice([1, 2])
        )
        form = draw.choice([AlternatingStage, PipelinedStage])
        return form(4, 4, 2 * draw.randint(1, 2), draw.randint(2, 5), options=options)
    if kind == "timm":
        return RepVggBlock(4, 4)
    if kind == "tapped":
        return Tapped(nn.Sequential(*chain_of(draw), *chain_of(draw)), {draw.randrange(6)})
    if kind == "shared":
        return Shared(nn.Conv2d(4, 4, 3, padding=1))
    return Residual(draw, 4) if kind == "residual" else chain_of(draw)


class Fusible(nn.Module):
    def __init__(self, draw: random.Random):
        super().__init__()
        self.stem, width = nn.Conv2d(3, 4, 1), 4
        self.parts = nn.ModuleList()
        for _ in range(draw.randint(1, 3)):
            part = part_of(draw)
            if isinstance(part, Residual) and part.stride > 1:
                continue
            self.parts.append(part)
        self.head = NormHead(width, 3) if draw.random() < 0.4 else nn.Identity()
        self.several = draw.random() < 0.3

    def forward(self, x: Tensor):
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return [self.head(x), x] if self.several else self.head(x)


# The audit


def audited(make, work, sizes: list[tuple[int, int]], draw: random.Random, strict_sizes: bool) -> str:
    """'right', 'refused: ...' or 'wrong: ...' for one random net."""
    net = seen(make(draw), draw)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    example = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    try:
        made = work(net, example)
    except (UsageError, RunError) as refusal:
        return "refused: " + " ".join(str(refusal).split(": ")[-1].split()[:5])
    except Exception as error:  # the audit's own finding
        return f"wrong: {type(error).__name__} {str(error)[:120]}"
    if any(not torch.equal(value, state[name]) for name, value in net.state_dict().items()):
        return "wrong: the source was changed"
    for batch, size in sizes:
        images = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            try:
                truth = net(images)
            except RuntimeError:  # the source cannot take this size itself
                continue
            try:
                told = made(images)
            except Exception as error:  # a twin may refuse another image size, with any error
                if size != 16 and not strict_sizes:
                    continue
                return f"wrong: {type(error).__name__} at {batch} x {size}"
        if not agreement(truth, told).relative_error <= LIMIT:
            return f"wrong: differs at {batch} x {size}"
    return "right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=500)
    parser.add_argument("--fusions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sizes, record = [(1, 16), (3, 16), (2, 24), (2, 13)], {}
    for kind, count in (("convert", chosen.nets), ("fuse", chosen.fusions)):
        found = collections.Counter()
        for index in range(count):
            draw = random.Random(f"{kind} {chosen.seed} {index}")
            torch.manual_seed(index)
            form = draw.choice(["structured", "dense"] if kind == "convert" else ["structured", "chain"])
            if kind == "convert":
                work, make = lambda net, x, form=form: convert(net, x, form=form)[0], Net
            else:
                work, make = lambda net, x, form=form: fuse(net, x, form=form), Fusible
            verdict = audited(make, work, sizes, draw, strict_sizes=kind == "fuse")
            found[verdict] += 1
            if verdict.startswith("wrong"):
                print(kind, index, form, verdict, flush=True)
            if index % 100 == 99:
                print(
                    kind,
                    index + 1,
                    dict(collections.Counter(key.split(":")[0] for key in found.elements())),
                    flush=True,
                )
        totals = collections.Counter(key.split(":")[0] for key in found.elements())
        record[kind] = {"nets": count, **{name: totals[name] for name in ("right", "refused", "wrong")}}
        record[kind]["reasons"] = {key: number for key, number in sorted(copy.copy(found).items()) if key != "right"}
    (ROOT / "results" / "audit-convert.json").write_text(json.dumps(environment() | record, indent=1) + "\n")


if __name__ == "__main__":
    main()
