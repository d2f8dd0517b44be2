"""The comparison's second family: Vision Transformers of one width and depth."""

import json

import pytest
import timm

from pnnh._errors import UsageError
from pnnh.cli import main
from pnnh.compare import VIT_METHODS, VIT_RECIPES, Cell, Comparison, Vit
from pnnh.cost import cost
from pnnh.data import load_data
from pnnh.train import Muon


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit=64)


def test_the_nets_are_equally_wide_and_deep_and_cost_the_same(data):
    family, macs = Vit(width=32), set()
    for method in VIT_METHODS:
        net, spec = family.build(method, 3, data)
        macs.add(cost(net, (1, 16, 16)).macs)
        again = timm.create_model(spec["name"], **spec["kwargs"])
        assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]
    assert len(macs) == 1


def test_rates_fall_with_depth_where_there_is_no_skip(data):
    recipe = VIT_RECIPES["default"](data, epochs=2)
    assert (recipe.grad_clip, recipe.schedule.warmup_epochs, recipe.epochs) == (1.0, 1.0, 2)
    plan = Comparison(recipe, tuple(VIT_METHODS), (12, 48), family=Vit(32), recipe_name="default")
    rate = lambda method, depth: plan.recipe_of(Cell(method, depth, 0)).optimizer.lr  # noqa: E731
    assert [rate(method, 12) for method in VIT_METHODS] == [1e-3, 1e-3, 1e-3, 3e-4]
    assert rate("pnnh", 48) == pytest.approx(1e-3 / 4)
    assert rate("residual", 48) == 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: Vit(width=40), "width 40 must be a multiple of 32"),
        (lambda data: Vit(patch=0), "patch 0 must be at least 1"),
        (lambda data: Vit(patch=5).build("pnnh", 3, data), "patch_size 5 must divide img_size 16"),
        (lambda data: Vit().check(2), "depth 2 must be at least 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message, data):
    with pytest.raises(UsageError, match=message):
        make(data)


def test_the_command_trains_vits_with_muon(tmp_path):
    sizes = "--family vit --depths 3 --width 32 --patch 4 --image-size 8 --limit 64 --epochs 1 --methods pnnh"
    command = ["compare", *sizes.split(), "--recipe", "muon", "--device", "cpu", "--jobs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    settings = results["settings"]
    assert (settings["family"], settings["width"], settings["patch"]) == ("vit", 32, 4)
    assert settings["recipe"]["optimizer"]["type"] == "Muon"
    assert [row["method"] for row in results["rows"]] == ["pnnh"]


def test_muon_for_vits_is_the_default_recipe_with_another_optimiser(data):
    muon, default = VIT_RECIPES["muon"](data), VIT_RECIPES["default"](data)
    assert isinstance(muon.optimizer, Muon)
    assert muon.to_dict() | {"optimizer": None} == default.to_dict() | {"optimizer": None}
