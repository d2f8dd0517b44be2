"""The published recipes as values, what they minimise and how they mix images."""

import importlib
from typing import get_args, get_type_hints

import pytest
import torch
from torch.nn import functional as F

from pnnh._errors import UsageError
from pnnh.cli import main
from pnnh.compare import CNN_RECIPES, VIT_RECIPES, recipe_for
from pnnh.data import Split
from pnnh.data.augment import numbered
from pnnh.data.disk import drawing_from
from pnnh.train import SGD, BinaryCrossEntropy, Cosine, Lamb, Mixing, Recipe, load_data
from pnnh.train.run import Run


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", image_size=8, limit=64)


def test_the_recipes_are_those_of_the_paper(digits):
    a2, a3 = CNN_RECIPES["a2"](digits), CNN_RECIPES["a3"](digits)
    assert (a2.epochs, a3.epochs, a2.batch_size, a3.batch_size) == (300, 100, 2048, 2048)
    assert (a2.optimizer, a3.optimizer) == (Lamb(5e-3), Lamb(8e-3))
    for recipe in (a2, a3):
        assert (recipe.weight_decay, recipe.schedule) == (0.02, Cosine(5))
        assert (recipe.loss, recipe.mixing) == (BinaryCrossEntropy(0.2), Mixing(0.1, 1.0))
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert CNN_RECIPES["a3"](digits, batch_size=512).optimizer.lr == pytest.approx(4e-3)


def test_data_on_disk_gets_the_papers_augmentation(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / part / name / "1.png")
    data = load_data(f"imagefolder:{tmp_path}", image_size=32)
    assert CNN_RECIPES["a2"](data).augment.policy == "rand-m7-mstd0.5-inc1"
    assert CNN_RECIPES["a3"](data).augment.policy == "rand-m6-mstd0.5-inc1"


def test_binary_cross_entropy_asks_each_class_by_itself():
    torch.manual_seed(0)
    logits, shares = torch.randn(2, 3), torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.0, 0.9]])
    there = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    p = logits.sigmoid()
    expected = -(there * p.log() + (1 - there) * (1 - p).log()).mean()
    loss = BinaryCrossEntropy().build(0.0)
    torch.testing.assert_close(loss(logits, shares), expected)
    torch.testing.assert_close(
        loss(logits, torch.tensor([0, 2])), loss(logits, F.one_hot(torch.tensor([0, 2]), 3).float())
    )


@pytest.mark.parametrize("mixing", [Mixing(0.5, 0), Mixing(0, 1.0)])
def test_the_share_of_the_classes_is_the_share_of_the_pixels(mixing):
    """Image i is the constant i: the mixed image's mean tells what came from where, exactly."""
    images = torch.arange(1.0, 5)[:, None, None, None].expand(4, 1, 8, 8).contiguous()
    shares = []
    for seed in [*range(20), 19]:
        with drawing_from(seed):
            mixed, classes = mixing.mix(images, torch.arange(4), 4, 0.0)
        torch.testing.assert_close(classes.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), classes @ torch.arange(1.0, 5))
        shares.append(classes[0, 0].item())
        if not mixing.mixup:
            assert set(mixed[0].unique().tolist()) <= {1.0, 4.0}
    assert torch.equal(images[:, 0, 0, 0], torch.arange(1.0, 5))  # the images themselves stay as they are
    assert len(set(shares)) > 5
    assert shares[-1] == shares[-2]


def test_a_run_learns_from_the_mixture(digits):
    """One step's loss is the recipe's loss of the mixed batch, and the batch is another than without mixing."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    recipe = CNN_RECIPES["a3"](digits, epochs=2, batch_size=32)
    assert isinstance(digits.train, Split)
    run = Run(model, digits, recipe, 0, torch.device("cpu"))
    images, labels = run.batch()
    with drawing_from(numbered(0, "draws 0", 0, "cpu").initial_seed()):
        mixed, shares = recipe.mixing.mix(images, labels, 10, 0.0)
    assert not torch.equal(images, mixed)
    expected = recipe.loss.build(0.0)(model(mixed), shares)
    run.advance()
    assert run.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mixing_needs_pairs(digits):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(UsageError, match="batch size 33 gives a process an odd number of images; mixing needs pairs"):
        Run(model, digits, Recipe(1, 33, mixing=Mixing()), 0, torch.device("cpu"))


def test_the_commands_know_the_recipes():
    asked = {
        name: get_args(get_type_hints(importlib.import_module(f"pnnh.cli.{name}").run)["recipe"])
        for name in ("train", "compare")
    }
    assert asked == {"train": tuple(CNN_RECIPES), "compare": ("default", "fast", "long", "muon")}
    assert set(asked["compare"]) < set(CNN_RECIPES)


@pytest.mark.parametrize(("table", "name"), [*((CNN_RECIPES, n) for n in CNN_RECIPES), (VIT_RECIPES, "muon")])
def test_a_recipe_is_a_value_that_a_record_holds_and_choices_win(digits, table, name):
    recipe = table[name](digits, epochs=3, batch_size=32, label_smoothing=0.2)
    assert (recipe.epochs, recipe.batch_size, recipe.label_smoothing) == (3, 32, 0.2)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_long_recipe_is_that_of_the_literature(digits):
    """chenyaofo/pytorch-cifar-models: SGD 0.1 with Nesterov momentum 0.9, cosine, decay 5e-4 on all, 200 epochs."""
    recipe = CNN_RECIPES["long"](digits)
    assert (recipe.epochs, recipe.optimizer, recipe.schedule) == (200, SGD(0.1, 0.9, True), Cosine(0.0))
    assert (recipe.weight_decay, recipe.decay_norms, recipe.batch_size) == (5e-4, True, 128)


def test_the_fast_recipe_is_one_cycle_of_30_epochs(digits):
    recipe = CNN_RECIPES["fast"](digits)
    assert (recipe.epochs, recipe.optimizer.lr, recipe.weight_decay) == (30, 0.3, 5e-4)
    assert recipe_for(digits) == CNN_RECIPES["default"](digits)


def test_the_command_takes_a_recipe(tmp_path, capsys):
    command = ["train", "pnnh_resnet_test", "--data", "digits", "--image-size", "32", "--limit", "64", "--recipe", "a3"]
    command += ["--epochs", "1", "--batch-size", "32", "--device", "cpu", "--out", str(tmp_path)]
    assert main(command) == 0
    import json

    written = json.loads((tmp_path / "record.json").read_text())["recipe"]
    assert written["optimizer"] == {"type": "Lamb", "lr": pytest.approx(1e-3)}
    assert written["loss"]["type"] == "BinaryCrossEntropy"
