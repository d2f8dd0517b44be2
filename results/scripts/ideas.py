"""What moves accuracy: one net per idea, trained alike, scored on held-out training images. Writes results/ideas*.json.

    python results/scripts/ideas.py                        every idea that the record lacks, seed 0
    python results/scripts/ideas.py --only base --seed 1
    python results/scripts/ideas.py --setting longer --only "lr 0.3"

SOAP is pytorch-optimizer's: `pip install pytorch-optimizer` for the ideas that name it.

CIFAR-10, SGD with one cycle, one training image in so many held out for the score; depth, images, epochs, learning
rate and coder are the setting's where an idea has none of its own. It ranks ideas; it publishes nothing,
and the test images are never looked at.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from _evidence import evidence
from torch import nn

import pnnh.models
from pnnh import theory
from pnnh._cost import cost
from pnnh.layers import (
    FrozenDirac,
    FrozenOrthogonal,
    LearnedCoder,
    LearnerConv,
    PerLayerCoder,
    PipelinedStage,
    PlainOptions,
)
from pnnh.train import AdamW, Muon, OneCycle, Recipe, load_data, recipe_for, train

RESULTS = Path(__file__).resolve().parents[1]
BASE = LearnedCoder(lr_scale=0.1)


@dataclass(frozen=True)
class SOAP:
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024), for ranking only."""

    lr: float = 3e-3
    beta1: float = 0.95
    beta2: float = 0.95

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from pytorch_optimizer import SOAP

        return SOAP(groups, lr=self.lr, betas=(self.beta1, self.beta2))


@dataclass(frozen=True)
class Setting:
    """Where ideas are ranked: how deep a net, on how many images, one in `every` of them held out, how long.

    lr, coder, learns, learner_ratio, norm: of PNNH where an idea has none of its own. The residual twin always learns
    at 0.1. Unless a setting says more, the net writes after every learner, which is as wide as the stream, and has no
    norm before the pooling, as the library's had until these ideas changed it.
    """

    name: str
    record: str
    depth: int
    limit: int | None
    every: int
    epochs: int
    lr: float = 0.1
    coder: LearnedCoder = BASE
    image_size: int = 16
    learns: int = 1
    learner_ratio: float = 1.0
    norm: bool = False


TODAY = Setting(
    "current", "ideas-current", 56, 25_000, 5, 5, 0.3, LearnedCoder(), learns=2, learner_ratio=0.75, norm=True
)
SETTINGS = (
    Setting("ranking", "ideas", 56, 25_000, 5, 5),
    Setting(
        "longer", "ideas-longer", 20, None, 10, 10, learner_ratio=0.9375
    ),  # as full images are, at a quarter of the size
    Setting("shallower", "ideas-shallower", 20, 25_000, 5, 5, learner_ratio=0.9375),
    Setting("deeper", "ideas-deeper", 110, 25_000, 5, 5),
    Setting("default", "ideas-default", 56, 25_000, 5, 5, 0.3, LearnedCoder()),
    TODAY,
    replace(TODAY, name="current-longer", record="ideas-current-longer", depth=20, limit=None, every=10, epochs=10),
    Setting("larger", "ideas-larger", 20, 25_000, 5, 6, 0.3, LearnedCoder(), image_size=32, learner_ratio=0.9375),
)


@dataclass(frozen=True)
class Idea:
    """A family of nets and what it and its recipe change. The claim is what one hoped for.

    options: of the plain layers. kwargs: of the net. recipe: `lr` and fields of `Recipe`.
    change: what is done to the net after it was built.
    """

    claim: str
    net: str = "pnnh_resnet"
    options: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    change: Callable[[nn.Module], None] = lambda net: None


def norm_last(net: nn.Module) -> None:
    """A batch norm between the last stage and the pooling, as nets with pre-activation have it."""
    net.stages.append(nn.BatchNorm2d(net.num_features))


def no_norm_last(net: nn.Module) -> None:
    """The classifier reads the stream as it is."""
    net.head.norm = nn.Identity()


def pool_streams(net: nn.Module) -> None:
    """The stream enters a stage by averaging and a 1 x 1 kernel in place of a 3 x 3 one."""
    for stage in net.stages:
        stream = stage.transition.stream
        conv = LearnerConv(stream[0].in_channels, stream[0].out_channels, kernel_size=1)
        stream[0] = nn.Sequential(nn.AvgPool2d(stream[0].stride), conv)


def decoupled(optimizer: AdamW | Muon | SOAP) -> dict[str, Any]:
    """Recipe entries of an optimiser whose decay is not part of the gradient."""
    return {"optimizer": optimizer, "weight_decay": 0.05}


OPTIMISERS = {
    AdamW: "another optimiser",
    Muon: "orthogonalised steps",
    SOAP: "steps in the basis that the curvature suggests",
}
IDEAS = {
    "residual": Idea("the twin", "cifar_resnet"),
    "plain": Idea("the floor", "plain_resnet"),
    "default": Idea("1 x 1 shared coder that starts as 0.3 of a Dirac and learns at 1 / n^2 of the rate, lr 0.3"),
    "base": Idea("1 x 1 shared coder that starts as 0.3 of a Dirac and learns at 0.1 of the rate, lr 0.1"),
    "coder fixed Dirac": Idea("is mixing needed at all?", options={"coder": FrozenDirac()}),
    "coder fixed orthogonal": Idea("is learning the mixing needed?", options={"coder": FrozenOrthogonal()}),
    "coder per layer": Idea("what does sharing cost?", options={"coder": PerLayerCoder()}),
    "coder starts at random": Idea("the first form", options={"coder": LearnedCoder(0.1, start="he")}),
    "coder at random, rate 0.3": Idea("a faster coder", options={"coder": LearnedCoder(0.3, start="he")}),
    "coder at random, norms decay": Idea(
        "as in He et al. 2015", options={"coder": LearnedCoder(0.1, start="he")}, recipe={"decay_norms": True}
    ),
    "coder 3 x 3, learner 3/4": Idea(
        "the parameters in the coder", options={"coder_kernel_size": 3}, kwargs={"learner_ratio": 0.75}
    ),
    "coder 3 x 3, learner 0.7": Idea(
        "writes that look around, too", options={"coder_kernel_size": 3}, kwargs={"learner_ratio": 0.7}
    ),
    "coder 3 x 3, learner 1/2": Idea(
        "and a thinner learner", options={"coder_kernel_size": 3}, kwargs={"learner_ratio": 0.5}
    ),
    "pipelined, learner 1/2": Idea(
        "learn and write in every layer", kwargs={"form": PipelinedStage, "learner_ratio": 0.5}
    ),
    "gain 0.1": Idea("quieter writes at the start", options={"gain": 0.1}),
    "gain 0.6": Idea("louder writes at the start", options={"gain": 0.6}),
    "gain 1": Idea("still louder writes at the start", options={"gain": 1.0}),
    "shift solved for the depth": Idea("more survivors", options={"shift": theory.solve_shift(56, 4.0)}),
    "shift -0.5": Idea("fewer survivors, so less linear layers", options={"shift": -0.5}),
    "activations leak 0.1": Idea("nothing is lost for good", options={"act": partial(nn.LeakyReLU, 0.1)}),
    "coder rate 1": Idea("the coder at the learners' rate", options={"coder": LearnedCoder(lr_scale=1.0)}),
    "wider, 0.98 x parameters": Idea("spend what was saved on width", kwargs={"widths": (22, 44, 88)}),
    "stream enters pooled": Idea(
        "the parameters of 3 x 3 transitions in the width",
        kwargs={"widths": (16, 40, 64), "learner_ratio": 1.0},
        change=pool_streams,
    ),
    "two learners a write": Idea(
        "deeper features, fewer writes", options={"learns": 2}, kwargs={"learner_ratio": 0.75}
    ),
    "two learners a write, norm before pooling": Idea(
        "what the library does", options={"learns": 2}, kwargs={"learner_ratio": 0.75}, change=norm_last
    ),
    "three learners a write": Idea("still deeper features", options={"learns": 3}),
    "no norm before pooling": Idea("is the norm needed?", change=no_norm_last),
    "residual, norm before pooling": Idea("and what a norm does to the twin", "cifar_resnet", change=norm_last),
    "norm before pooling": Idea("a better conditioned classifier", change=norm_last),
    "lr 0.3, norm before pooling": Idea("a better conditioned classifier", change=norm_last, recipe={"lr": 0.3}),
    "residual, norms decay": Idea("and what that does to the twin", "cifar_resnet", recipe={"decay_norms": True}),
    "EMA 0.99": Idea("average the weights", recipe={"ema_decay": 0.99}),
    "label smoothing 0.1": Idea("softer targets", recipe={"label_smoothing": 0.1}),
    **{
        f"{kind.__name__} {lr}": Idea(claim, recipe=decoupled(kind(lr=float(lr))))
        for kind, claim in OPTIMISERS.items()
        for lr in ("6e-4", "2e-3", "6e-3", "2e-2", "6e-2")
    },
    "Muon 2e-2, coder rate 1/n": Idea(
        "its steps have one size, however many gradients they sum",
        options={"coder": LearnedCoder(lr_scale=1 / 6)},
        recipe=decoupled(Muon(lr=2e-2)),
    ),
    "Muon 2e-2, coder rate 1": Idea(
        "and the coder at the learners' rate",
        options={"coder": LearnedCoder(lr_scale=1.0)},
        recipe=decoupled(Muon(lr=2e-2)),
    ),
    "Muon 2e-2, three learners a write": Idea(
        "do deeper features add to better steps?",
        options={"learns": 3},
        recipe=decoupled(Muon(lr=2e-2)),
    ),
    **{
        f"residual, {kind.__name__} {lr}": Idea("and the twin's", "cifar_resnet", recipe=decoupled(kind(lr=float(lr))))
        for kind in (Muon, SOAP)
        for lr in ("2e-3", "6e-3", "2e-2", "6e-2")
    },
    "warm-up a tenth": Idea("a shorter rise", recipe={"schedule": OneCycle(warmup=0.1)}),
    "lr 0.1": Idea("a smaller step", recipe={"lr": 0.1}),
    "lr 0.3": Idea("a larger step", recipe={"lr": 0.3}),
    "lr 0.6": Idea("a still larger step", recipe={"lr": 0.6}),
    "residual, lr 0.3": Idea("and the twin's", "cifar_resnet", recipe={"lr": 0.3}),
    "lr 0.3, decay 2e-4": Idea("less decay for a larger step", recipe={"lr": 0.3, "weight_decay": 2e-4}),
    "lr 0.3, coder fixed Dirac": Idea(
        "does what the coder learns help?", options={"coder": FrozenDirac()}, recipe={"lr": 0.3}
    ),
    "lr 0.3, coder rate 0.01": Idea(
        "a slower coder", options={"coder": LearnedCoder(lr_scale=0.01)}, recipe={"lr": 0.3}
    ),
    "lr 0.3, gain 0.15": Idea("quieter writes, as there are more", options={"gain": 0.15}, recipe={"lr": 0.3}),
    "lr 0.3, wider early": Idea(
        "parameters from the last stage to the first", kwargs={"widths": (24, 34, 56)}, recipe={"lr": 0.3}
    ),
    "wider middle": Idea("parameters from the last stage to the second", kwargs={"widths": (16, 40, 56)}),
}


def recipe_of(idea: Idea, data, setting: Setting) -> Recipe:
    changes = dict(idea.recipe)
    lr = changes.pop("lr", 0.1 if idea.net == "cifar_resnet" else setting.lr)
    recipe = recipe_for(data, epochs=setting.epochs).with_lr(lr)
    return replace(recipe, **changes)


def score(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Train the net of an idea and score it on the held-out images. Accuracies are shares."""
    idea = IDEAS[name]
    data = load_data("cifar10", image_size=setting.image_size, limit=setting.limit).split(1 / setting.every)
    torch.manual_seed(seed)
    ours = idea.net == "pnnh_resnet"
    base = {"coder": setting.coder, "learns": setting.learns}
    plain = {"learner_ratio": setting.learner_ratio, "options": PlainOptions(**base | idea.options)} if ours else {}
    model = timm.create_model(f"{idea.net}20", depth=setting.depth, **plain | idea.kwargs)
    if ours and not setting.norm:
        no_norm_last(model)
    idea.change(model)
    counted = cost(model, (3, setting.image_size, setting.image_size))
    recipe = recipe_of(idea, data, setting)
    found = evidence()
    if isinstance(recipe.optimizer, SOAP):
        found["versions"]["pytorch-optimizer"] = version("pytorch-optimizer")
    for epoch in train(model, data, recipe, seed=seed, evaluate_every=recipe.epochs):
        print(name, seed, epoch, flush=True)
    return {
        "idea": name,
        "claim": idea.claim,
        "seed": seed,
        "held_out_accuracy": epoch.test_accuracy,
        "train_accuracy": epoch.train_accuracy,
        "num_params": counted.num_params,
        "macs": counted.macs,
        "recipe": recipe.to_dict(),
        "evidence": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(IDEAS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", choices=[setting.name for setting in SETTINGS], default="ranking")
    asked = parser.parse_args()
    assert pnnh.models  # registers the nets
    (setting,) = [setting for setting in SETTINGS if setting.name == asked.setting]
    place = RESULTS / f"{setting.record}.json"
    for name in asked.only or IDEAS:
        rows = json.loads(place.read_text())["rows"] if place.exists() else []
        if any((row["idea"], row["seed"]) == (name, asked.seed) for row in rows):
            continue
        row = score(name, asked.seed, setting)
        rows = json.loads(place.read_text())["rows"] if place.exists() else []
        rows.append(row)
        order = list(IDEAS)
        rows.sort(key=lambda row: (order.index(row["idea"]), row["seed"]))
        place.write_text(json.dumps({"setting": asdict(setting), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
