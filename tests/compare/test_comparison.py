"""`compare` on very small nets: cells, rows, resuming, processes; nothing here trains for long."""

import json
import pickle
import re
import sys
from dataclasses import replace

import pytest
import timm
import torch

import pnnh
from pnnh._errors import UsageError
from pnnh.cli import main
from pnnh.compare import (
    CNN_METHODS,
    Cell,
    Cnn,
    Comparison,
    Imagenet,
    Method,
    Observer,
    Vit,
    cells,
    methods,
    rate_for,
    run,
    summary,
)
from pnnh.compare.compare import compare
from pnnh.data import load_data
from pnnh.layers import LearnedCoder, PlainOptions
from pnnh.models.registry import DEPTHS
from pnnh.train import Muon, Recipe

SMALL = {"depths": (8,), "image_size": 8, "limit": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def data():
    return load_data("digits", image_size=8, limit=64)


@pytest.fixture
def plan():
    return Comparison(Recipe(epochs=1, batch_size=32), methods=("plain", "pnnh"), depths=(8,), recipe_name="default")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def key(plan, data, index=0, **options):
    cell = plan.cells()[index]
    return plan.key(cell, plan.family.build(cell.method, cell.depth, data, **options)[0], data)


def test_cells_are_the_product_and_keys_follow_the_recipe_and_the_data(plan, data):
    assert [cell.name for cell in plan.cells()] == ["plain-8-0", "pnnh-8-0"]
    longer = replace(plan, recipe=Recipe(epochs=2, batch_size=32))
    fewer = load_data("digits", image_size=8, limit=60)
    assert len({key(plan, data), key(longer, data), key(plan, fewer)}) == 3
    assert key(plan, data) == key(plan, load_data("digits", image_size=8, limit=64))


def test_keys_follow_the_net_that_was_built(plan, data):
    slower = PlainOptions(coder=LearnedCoder(0.05))
    found = [key(plan, data, 1), key(plan, data, 1, options=slower), key(plan, data, 1, widths=(8, 16, 24))]
    assert len(set(found)) == 3


def test_keys_follow_options_that_a_net_does_not_print(data, monkeypatch):
    plan = Comparison(Recipe(), methods=("diracnet",), depths=(8,))
    louder = {"beta": 1.0}
    assert str(Cnn().build("diracnet", 8, data)[0]) == str(Cnn().build("diracnet", 8, data, **louder)[0])
    before = key(plan, data)
    monkeypatch.setitem(CNN_METHODS, "diracnet", Method("cifar_diracnet{}", louder))
    assert key(plan, data) != before


@pytest.mark.parametrize("method", CNN_METHODS)
def test_a_method_has_a_net_of_every_depth_that_is_built_again_from_its_record(method, data):
    for depth in (20, 26):
        with torch.device("meta"):
            model, spec = Cnn().build(method, depth, data)
            again = timm.create_model(spec["name"], **json.loads(json.dumps(spec["kwargs"])))
        assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]
        assert str(again) == str(model)
        assert "0x" not in str(model), "printed alike in every process"
        assert (depth in DEPTHS) == (spec["name"] == CNN_METHODS[method].model.format(depth))


def test_unknown_methods_depths_and_recipes_are_refused_before_anything_is_loaded(tmp_path):
    for given, message in {
        ("methods", ("vgg",)): "unknown method 'vgg'; choose from plain, residual, pnnh",
        ("depths", (21,)): "depth 21 must be 6n",
        ("seeds", ()): "at least one",
        ("recipe", "quick"): "recipe 'quick' is not one for convolutional nets; choose from default, fast, long",
    }.items():
        with pytest.raises(UsageError, match=message):
            compare("no such data", out=tmp_path / "new", device="cpu", **dict([given]))
    with pytest.raises(UsageError, match="recipe 'fast' is not one for ViTs; choose from default, muon"):
        compare("no such data", recipe="fast", family=Vit(), out=tmp_path / "new", device="cpu")
    assert not (tmp_path / "new").exists()


def test_loaded_data_are_taken_as_they_are(data, tmp_path):
    with pytest.raises(UsageError, match="limit is for data given by name"):
        compare(data, limit=20, out=tmp_path, device="cpu")


def test_the_data_are_loaded_once_and_finished_rows_are_reused(tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(
        sys.modules["pnnh.compare.compare"], "load_data", lambda *a, **k: loads.append(a) or load_data(*a, **k)
    )
    arguments = {"methods": ("plain", "pnnh"), "choices": {"epochs": 1, "batch_size": 32}, "out": tmp_path, **SMALL}
    first = compare("digits", **arguments)
    assert len(loads) == 1
    monkeypatch.setattr(cells, "train", lambda *_, **__: pytest.fail("a finished row was trained again"))
    again = compare("digits", **arguments)
    assert again.cells == first.cells
    assert [row["method"] for row in first.rows()] == ["plain", "pnnh"]
    assert first.settings["recipe_name"] == "default"
    assert first.evidence["data"]["sha256"] == load_data("digits", image_size=8, limit=64).sha256
    assert re.fullmatch(r"Results\(digits: plain-8 [\d.]+ %, pnnh-8 [\d.]+ %\)", repr(first))
    assert "<svg" in first._repr_html_()
    assert "<td>pnnh</td>" in first._repr_html_()


def test_rows_that_are_broken_or_of_other_settings_are_not_used(plan, data, tmp_path):
    file = tmp_path / "row.json"
    file.write_text(json.dumps({"key": key(plan, data)}))
    assert cells.finished(file, key(plan, data)) is not None
    assert cells.finished(file, key(replace(plan, recipe=Recipe(epochs=3)), data)) is None
    file.write_text("{half a ro")
    assert cells.finished(file, key(plan, data)) is None


class Heard(Observer):
    def __init__(self):
        self.epochs = []

    def epoch(self, cell, event):
        self.epochs.append(cell.name)


def test_two_processes_give_the_rows_of_one(plan, data, tmp_path):
    heard = Heard()
    one = list(run(plan, data, device="cpu", out=tmp_path / "one"))
    two = list(run(plan, data, device="cpu", out=tmp_path / "two", jobs=2, observer=heard))
    assert sorted(heard.epochs) == ["plain-8-0", "pnnh-8-0"]
    volatile = {"seconds", "images_per_second", "step_ms", "curve"}
    by_method = {row["method"]: {k: v for k, v in row.items() if k not in volatile} for row in two}
    for row in one:
        assert by_method[row["method"]] == {k: v for k, v in row.items() if k not in volatile}


def test_a_process_maps_the_images_instead_of_being_sent_them(data, tmp_path):
    shared = cells._on_disk(data, tmp_path)
    assert len(pickle.dumps(shared)) < data.test.images.numel() / 2
    cells._start(pickle.loads(pickle.dumps(shared)), 1)
    (there,) = cells._data
    cells._data.clear()
    assert torch.equal(there.train.images, data.train.images)
    assert torch.equal(there.test.labels, data.test.labels)
    assert there.sha256 == data.sha256


@pytest.fixture
def wild(plan, monkeypatch):
    """PNNH at a rate that no net survives, and TAT at its own."""
    monkeypatch.setitem(methods.CNN_RATES, "default", {"pnnh": 1e18, "tat": 0.001})
    return replace(plan, methods=("pnnh", "tat"))


def test_a_rate_is_of_its_recipe(plan):
    """A rate tuned for one recipe is not another's, and a recipe without a name holds for all methods."""
    cell = Cell("tat", 8, 0)
    assert plan.recipe_of(cell) == plan.recipe.with_lr(methods.CNN_RATES["default"]["tat"])
    assert replace(plan, recipe_name="").recipe_of(cell) == plan.recipe
    other = replace(plan, recipe=replace(plan.recipe, optimizer=Muon(lr=0.5)), recipe_name="muon")
    assert other.recipe_of(cell).optimizer.lr == methods.CNN_RATES["muon"]["tat"]
    assert other.recipe_of(Cell("pnnh", 8, 0)).optimizer.lr == 0.5


@pytest.mark.parametrize("recipe", ["default", "fast", "long", "muon"])
def test_the_twins_run_at_the_rate_of_the_pnnh_net(recipe):
    names = ("residual", "residual_same_block", "residual_narrow", "residual_short", "residual_shared", "plain")
    rates = {Cnn().rate(method, 20, recipe, 0.123) for method in ("pnnh", *names)}
    assert len(rates) == 1


def test_rates_are_those_of_known_methods_and_are_found_by_a_nets_name():
    for rates in methods.CNN_RATES.values():
        assert set(rates) <= set(CNN_METHODS)
    assert rate_for("pnnh_resnet56", "default") == 0.3
    assert rate_for("cifar_resnet20_2015", "fast") == 0.1
    assert rate_for("pnnh_resnet56", "fast") is None, "the recipe's"
    assert rate_for("resnet18", "default") is None


def test_a_diverged_net_is_a_row_and_the_others_go_on(wild, data, tmp_path, monkeypatch):
    rows = {row["method"]: row for row in run(wild, data, device="cpu", out=tmp_path)}
    assert re.match(r"the loss is not finite at step \d of 2, first in layer '", rows["pnnh"]["diverged"])
    assert rows["pnnh"]["test_accuracy"] is rows["pnnh"]["train_accuracy"] is rows["pnnh"]["model"] is None
    assert rows["tat"]["diverged"] is None
    assert 0 <= rows["tat"]["test_accuracy"] <= 1
    assert (tmp_path / rows["tat"]["model"] / "model.safetensors").is_file()
    monkeypatch.setattr(cells, "train", lambda *_, **__: pytest.fail("a finished row was trained again"))
    assert {row["method"]: row for row in run(wild, data, device="cpu", out=tmp_path)} == rows


ROW = {"method": "pnnh", "depth": 8, "num_params": 10, "macs": 20, "step_ms": 5.0, "train_accuracy": 0.5}


def test_diverged_nets_are_counted_not_averaged():
    lost = ROW | {"test_accuracy": None, "train_accuracy": None, "step_ms": None, "diverged": "at step 3"}
    other = ROW | {"method": "plain", "test_accuracy": 0.5, "diverged": None}
    some = summary([ROW | {"test_accuracy": 0.9, "diverged": None}, lost, other])
    assert [(row["test_%"], row["n"], row["diverged"], row["step_ms"]) for row in some] == [
        (90, 1, 1, 5),
        (50, 1, 0, 5),
    ]
    (none,) = summary([lost, lost])
    assert (none["test_%"], none["std"], none["n"], none["diverged"], none["step_ms"]) == (None, None, 0, 2, None)
    assert "diverged" not in summary([other])[0]


def test_a_summary_has_learning_rates_where_they_differ():
    rows = [ROW | {"test_accuracy": 0.5, "lr": 0.3}, ROW | {"method": "residual", "test_accuracy": 0.5, "lr": 0.1}]
    assert [row["lr"] for row in summary(rows)] == [0.3, 0.1]
    assert "lr" not in summary(rows[:1])[0]


def test_summary_is_mean_and_sample_deviation_over_seeds():
    (row,) = summary([ROW | {"test_accuracy": a} for a in (0.90, 0.92, 0.94)])
    sizes = {"method": "pnnh", "depth": 8, "params": 10, "macs": 20}
    assert row == sizes | {"test_%": 92.0, "std": 2.0, "n": 3, "step_ms": 5}


def test_survival_is_counted_in_call_order(data):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            alive = torch.relu(self.weight * x.abs() + 1)
            return torch.relu(-alive)

    assert cells.survival(Net(), data) == [1.0, 1.0, 0.0]  # of abs, and of both


def test_compare_is_a_verb_of_the_package():
    assert pnnh.compare is compare


def command(tmp_path, *more):
    small = ["--image-size", "8", "--limit", "64", "--epochs", "1", "--jobs", "1", "--device", "cpu", "--depths", "8"]
    return main(["compare", *small, "--batch-size", "32", *more, "--out", str(tmp_path)])


def test_the_command_takes_a_recipe_and_writes_results_and_a_report(tmp_path, capsys):
    """And --lr changes the recipe's rate, not its optimiser."""
    assert command(tmp_path, "--methods", "pnnh", "--recipe", "muon", "--lr", "0.007") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["recipe"]["optimizer"] == {"type": "Muon", "lr": 0.007, "momentum": 0.95}
    assert results["settings"]["recipe"]["weight_decay"] == 0.05
    assert [row["lr"] for row in results["rows"]] == [0.007]
    needed = {"method", "depth", "seed", "num_params", "macs", "test_accuracy", "train_accuracy", "step_ms"}
    assert needed <= set(results["rows"][0])
    assert {"command", "versions", "device", "code_version", "date", "settings", "data"} <= set(results)
    page = (tmp_path / "report.html").read_text()
    assert "Muon, the same recipe for every method" in page
    assert page.count("<svg") == 7  # the picture, two lines a state, the frontier, curves
    assert not re.findall(r"(?:src|href)=\"https?:", page)
    assert "<script" not in page
    assert "report.html" in capsys.readouterr().out


def test_the_command_reports_a_diverged_net_and_fails_only_if_all_are(tmp_path, capsys):
    assert command(tmp_path, "--methods", "pnnh", "--lr", "1e18") == 1
    said = capsys.readouterr()
    assert "pnnh-8-0  diverged: the loss is not finite" in said.out
    assert said.err == "pnnh compare: none of the 1 nets trained, all diverged; lower --lr\n"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["summary"][0]["test_%"] is None
    page = (tmp_path / "report.html").read_text()
    assert "Depth 8, seed 0: the PNNH net diverged: the loss is not finite" in page
    assert ">diverged<" in page


def test_the_imagenet_shaped_family_has_one_depth_and_its_own_methods(data):
    family = Imagenet()
    for method in family.usual:
        with torch.device("meta"):
            model, spec = family.build(method, 18, data)
        assert spec["name"] == family.methods[method].model.format(18)
        assert (model.num_classes, model.in_chans, spec["kwargs"]["num_classes"]) == (10, 1, 10)
        assert family.rate(method, 18, "fast", 0.3) == 0.3
    with pytest.raises(UsageError, match="depth 20 must be 18"):
        Comparison(Recipe(), methods=("pnnh",), depths=(20,), family=family)
