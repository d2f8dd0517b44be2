"""timm's contract, which all nets keep alike: one small net of every family and kind, in both of timm's modes."""

import pickle
from dataclasses import dataclass, field

import pytest
import timm
import torch
from timm.models import group_parameters

from pnnh.models import registry
from pnnh.train import param_groups


@dataclass(frozen=True)
class Case:
    """levels: the intermediate maps [C, H, W] of one image [3, *image]; last: the features before the head, of the
    whole net; first: those of the net pruned to its first level (ImageNet-shaped nets pool between their first two).
    """

    name: str
    image: tuple[int, int]
    levels: tuple[tuple[int, int, int], ...]
    last: tuple[int, ...]
    first: tuple[int, ...]
    kwargs: dict = field(default_factory=dict)

    def build(self, **kwargs):
        torch.manual_seed(0)
        return timm.create_model(self.name, **self.kwargs | kwargs)

    def images(self):
        return torch.randn(2, 3, *self.image)


CIFAR = ((4, 16, 16), (8, 8, 8), (16, 4, 4))
IMAGENET = ((8, 32, 48), (8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3))
TOKENS = (17, 32)
CASES = [
    Case(name, (16, 16), CIFAR, CIFAR[-1], CIFAR[0])
    for name in registry.MODELS
    if "_tiny" in name and "vit" not in name
]
CASES += [Case(n, (64, 96), IMAGENET, IMAGENET[-1], IMAGENET[1]) for n in registry.IMAGENET_NETS if "test" in n]
CASES += [
    Case(name, (16, 16), ((32, 4, 4),) * 3, TOKENS, TOKENS, {"class_token": True})
    for name in registry.MODELS
    if "_vit_test" in name
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_name_of_the_table_is_registered_as_a_function_of_its_module():
    names = set(registry.MODELS)
    assert set(timm.list_models(module="registry")) == names == set(registry.default_cfgs)
    assert all(timm.is_model(name) for name in names)
    assert names <= set(registry.__all__)
    for name in names:
        build = getattr(registry, name)
        assert (build.__name__, build.__module__) == (name, registry.__name__)
        assert pickle.loads(pickle.dumps(build)) is build


@every_case
def test_features_head_and_intermediates(case):
    model, x = case.build().eval(), case.images()
    features = model.forward_features(x)
    assert features.shape == (2, *case.last)
    assert model.num_features == case.levels[-1][0]
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    final, between = model.forward_intermediates(x)
    torch.testing.assert_close(final, features)
    assert [tuple(t.shape[1:]) for t in between] == list(case.levels)
    told = [(info["num_chs"], *(side // info["reduction"] for side in case.image)) for info in model.feature_info]
    assert told == list(case.levels)
    for index, expected in enumerate(between):
        (only,) = model.forward_intermediates(x, indices=[index], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(only, expected)


@every_case
def test_a_new_classifier_and_pruning(case):
    model, x = case.build().eval(), case.images()
    assert model.get_classifier().out_features == model.pretrained_cfg["num_classes"]
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, *case.last)
    model.reset_classifier(0, "avg")
    assert model(x).shape == (2, case.levels[-1][0])
    model.reset_classifier(5, "avg")
    assert model.prune_intermediate_layers([0]) == [0]
    assert model(x).shape == (2, *case.first)
    assert model.num_features == model.feature_info[0]["num_chs"] == case.levels[0][0]


def test_a_head_loses_its_norm_with_the_stage_it_belongs_to_or_on_demand():
    norm = lambda net: isinstance(net.head.norm, torch.nn.BatchNorm2d)  # noqa: E731
    build = lambda: timm.create_model("pnnh_resnet_tiny")  # noqa: E731
    for wanted, choices, kept in [(2, {}, True), (2, {"prune_norm": True}, False), (0, {}, False)]:
        net = build()
        net.prune_intermediate_layers([wanted], **choices)
        assert (norm(net), net.num_classes) == (kept, 0)
    net = build()
    classifier = net.head.fc
    net.prune_intermediate_layers([2], prune_norm=True, prune_head=False)
    assert net.head.fc is classifier, "what it has learned"
    assert (norm(net), net.num_classes, net(torch.randn(2, 3, 16, 16)).shape) == (False, 10, (2, 10))
    net = build()
    net.reset_classifier(5)
    assert norm(net)


@every_case
def test_features_only(case):
    shapes = lambda net: [tuple(t.shape[1:]) for t in net(case.images())]  # noqa: E731
    assert shapes(case.build(features_only=True, out_indices=(0, 2))) == [case.levels[0], case.levels[2]]
    assert shapes(case.build(features_only=True)) == list(case.levels), "a choice outlived the net it was made for"


@every_case
def test_every_parameter_learns_and_checkpointing_changes_nothing(case):
    model, x, grads = case.build(), case.images(), []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*registry.IMAGENET_NETS, *(case.name for case in CASES)}))
def test_every_parameter_is_in_one_group_of_timms_and_of_ours(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    names = sorted(name for name, _ in model.named_parameters())
    for coarse in (True, False):
        grouped = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sorted(name for group in grouped.values() for name in group) == names
    assert sum(len(group["params"]) for group in param_groups(model, 1e-4)) == len(names)
