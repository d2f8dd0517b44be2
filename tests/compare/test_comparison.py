"""The main job on very small nets: rows, resuming, processes, the report's sentences; nothing here trains for long."""

import json
import re
from dataclasses import replace

import pytest
import torch

from pnnh import provenance, recipes
from pnnh._errors import UsageError
from pnnh.cli import main
from pnnh.layers import LearnedCoder, PlainOptions
from pnnh.recipes import comparison
from pnnh.report.comparison import comparison_page, reading
from pnnh.report.page import html
from pnnh.train import SGD, Muon, Recipe


@pytest.fixture
def plan():
    recipe = Recipe(epochs=1, batch_size=32)
    return recipes.Comparison("digits", recipe, methods=("plain", "pnnh"), depths=(8,), image_size=8, limit=64)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def key(plan, index=0, **kwargs):
    cell = plan.cells()[index]
    return plan.key(cell, recipes.build(cell.method, cell.depth, **kwargs)[0])


def test_cells_are_the_product_and_keys_follow_the_settings(plan):
    assert [cell.name for cell in plan.cells()] == ["plain-8-0", "pnnh-8-0"]
    other = recipes.Comparison("digits", Recipe(epochs=2, batch_size=32), depths=(8,), image_size=8, limit=64)
    assert key(other) != key(plan) == key(plan)


def test_keys_follow_the_net_that_was_built(plan):
    slower = PlainOptions(coder=LearnedCoder(0.05))
    found = [key(plan, 1), key(plan, 1, options=slower), key(plan, 1, widths=(8, 16, 24))]
    assert len(set(found)) == 3


def test_keys_follow_options_that_a_net_does_not_print(monkeypatch):
    plan = recipes.Comparison("digits", Recipe(), methods=("diracnet",), depths=(8,))
    louder = {"beta": 1.0}
    assert str(recipes.build("diracnet", 8)[0]) == str(recipes.build("diracnet", 8, **louder)[0])
    before = key(plan)
    monkeypatch.setitem(
        comparison.METHODS, "diracnet", comparison.Method("cifar_diracnet{}", lr={SGD: 1.0}, options=louder)
    )
    assert key(plan) != before


@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_net_prints_itself_alike_in_every_process(method):
    assert "0x" not in str(recipes.build(method, 20)[0])


def test_unknown_methods_and_depths_are_refused():
    with pytest.raises(UsageError, match="unknown method 'vgg'; choose from plain, residual, pnnh"):
        recipes.Comparison("digits", Recipe(), methods=("vgg",))
    with pytest.raises(UsageError, match="depth 21 must be 6n"):
        recipes.Comparison("digits", Recipe(), depths=(21,))
    with pytest.raises(UsageError, match="at least one"):
        recipes.Comparison("digits", Recipe(), seeds=())


def test_a_depth_that_is_not_registered_is_built_and_recorded():
    model, spec = recipes.build("pnnh", 38, num_classes=10, in_chans=1)
    assert model.depth == 38
    again = comparison.timm.create_model(spec["name"], **spec["kwargs"])
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


def test_finished_rows_are_reused_and_rows_of_other_settings_are_not(plan, tmp_path, monkeypatch):
    first = list(recipes.run(plan, device="cpu", out=tmp_path))
    monkeypatch.setattr(comparison, "train", lambda *_, **__: pytest.fail("a finished row was trained again"))
    assert list(recipes.run(plan, device="cpu", out=tmp_path)) == first
    (tmp_path / "rows" / "plain-8-0.json").write_text("{half a ro")
    assert comparison.finished(tmp_path / "rows" / "plain-8-0.json", key(plan)) is None
    changed = recipes.Comparison("digits", Recipe(epochs=3), methods=("pnnh",), depths=(8,), image_size=8, limit=64)
    assert comparison.finished(tmp_path / "rows" / "pnnh-8-0.json", key(changed)) is None


def test_two_processes_give_the_rows_of_one(plan, tmp_path):
    told = []
    one = list(recipes.run(plan, device="cpu", out=tmp_path / "one"))
    two = list(
        recipes.run(plan, device="cpu", out=tmp_path / "two", jobs=2, tell=lambda cell, event: told.append(cell.name))
    )
    assert sorted(told) == ["plain-8-0", "pnnh-8-0"]
    volatile = {"seconds", "images_per_second", "curve"}
    by_method = {row["method"]: {k: v for k, v in row.items() if k not in volatile} for row in two}
    for row in one:
        assert by_method[row["method"]] == {k: v for k, v in row.items() if k not in volatile}


@pytest.fixture
def wild(plan, monkeypatch):
    """PNNH at a rate that no net survives, and TAT at its own."""
    monkeypatch.setitem(comparison.METHODS, "pnnh", comparison.Method("pnnh_resnet{}", lr={SGD: 1e18}))
    return replace(plan, methods=("pnnh", "tat"))


def test_a_rate_is_of_its_optimiser(plan):
    """What was tuned for SGD is not for another, and nothing is of its own where one rate was asked for."""
    cell = comparison.Cell("tat", 8, 0)
    tuned = recipes.METHODS["tat"].lr[SGD]
    assert replace(plan, methods=("tat",)).recipe_of(cell) == plan.recipe.with_lr(tuned)
    other = replace(plan, recipe=replace(plan.recipe, optimizer=Muon(lr=0.5)))
    assert other.recipe_of(cell).optimizer.lr == recipes.METHODS["tat"].lr.get(Muon, 0.5) != tuned
    assert replace(plan, own_lr=False).recipe_of(cell) == plan.recipe


def test_the_command_takes_a_recipe(tmp_path):
    """And --lr changes the recipe's rate, not its optimiser."""
    small = ["--image-size", "8", "--limit", "64", "--epochs", "1", "--jobs", "1", "--device", "cpu", "--depths", "8"]
    command = ["compare", "--methods", "pnnh", *small, "--recipe", "muon", "--lr", "0.007", "--out", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["recipe"]["optimizer"] == {"type": "Muon", "lr": 0.007, "momentum": 0.95}
    assert results["settings"]["recipe"]["weight_decay"] == 0.05
    assert [row["lr"] for row in results["rows"]] == [0.007]
    assert "Muon, the same recipe for every method" in (tmp_path / "report.html").read_text()


def test_a_recipe_for_convolutions_is_refused_for_transformers(tmp_path, capsys):
    assert main(["compare", "--family", "vit", "--recipe", "muon", "--out", str(tmp_path / "new")]) == 2
    assert "recipe 'muon' is for convolutional nets; leave --recipe out for ViTs" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_diverged_net_is_a_row_and_the_others_go_on(wild, tmp_path, monkeypatch):
    rows = {row["method"]: row for row in recipes.run(wild, device="cpu", out=tmp_path)}
    assert re.match(r"the loss is not finite at step \d of 2, first in layer '", rows["pnnh"]["diverged"])
    assert rows["pnnh"]["test_accuracy"] is rows["pnnh"]["train_accuracy"] is rows["pnnh"]["model"] is None
    assert rows["tat"]["diverged"] is None
    assert 0 <= rows["tat"]["test_accuracy"] <= 1
    assert (tmp_path / rows["tat"]["model"] / "model.safetensors").is_file()
    monkeypatch.setattr(comparison, "train", lambda *_, **__: pytest.fail("a finished row was trained again"))
    assert {row["method"]: row for row in recipes.run(wild, device="cpu", out=tmp_path)} == rows


def test_diverged_nets_are_counted_not_averaged():
    cell = {"method": "pnnh", "depth": 8, "num_params": 10, "macs": 20, "images_per_second": 5.0, "diverged": None}
    lost = cell | {"test_accuracy": None, "images_per_second": None, "diverged": "at step 3"}
    old = {"method": "plain", "depth": 8, "num_params": 10, "macs": 20, "images_per_second": 5.0, "test_accuracy": 0.5}
    some = recipes.summary([cell | {"test_accuracy": 0.9}, lost, old])
    assert [(row["test_%"], row["n"], row["diverged"], row["img/s"]) for row in some] == [(90, 1, 1, 5), (50, 1, 0, 5)]
    (none,) = recipes.summary([lost, lost])
    assert (none["test_%"], none["std"], none["n"], none["diverged"], none["img/s"]) == (None, None, 0, 2, None)
    assert "diverged" not in recipes.summary([old])[0]


def test_a_summary_has_learning_rates_where_they_differ():
    cell = {"method": "pnnh", "depth": 8, "num_params": 10, "macs": 20, "images_per_second": 5.0, "test_accuracy": 0.5}
    rows = [cell | {"lr": 0.3}, cell | {"method": "residual", "lr": 0.1}]
    assert [row["lr"] for row in recipes.summary(rows)] == [0.3, 0.1]
    assert "lr" not in recipes.summary(rows[:1])[0]


def test_the_command_reports_a_diverged_net_and_fails_only_if_all_are(tmp_path, capsys):
    sizes = ["--depths", "8", "--epochs", "1", "--image-size", "8", "--limit", "64", "--device", "cpu"]
    sizes += ["--jobs", "1", "--batch-size", "32"]
    assert main(["compare", "--methods", "pnnh", *sizes, "--lr", "1e18", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "pnnh-8-0  diverged: the loss is not finite" in said.out
    assert said.err == "pnnh compare: none of the 1 nets trained, all diverged; lower --lr\n"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["summary"][0]["test_%"] is None
    page = (tmp_path / "report.html").read_text()
    assert "Depth 8, seed 0: the PNNH net diverged: the loss is not finite" in page
    assert ">diverged<" in page


def test_the_page_has_what_trained_beside_what_diverged(wild, tmp_path):
    rows = list(recipes.run(wild, device="cpu", out=tmp_path))
    data = wild.load().to_dict()
    results = {"rows": rows, "summary": recipes.summary(rows), "settings": wild.settings(), "data": data}
    results |= provenance.environment(torch.device("cpu"))
    page = comparison_page(results)
    assert [row["test_%"] == "diverged" for row in page.sections[1].rows] == [True, False]
    assert html(page).count("<svg") == 3
    assert reading(results["summary"]) == []


def test_survival_of_a_chain_of_relus_is_counted_in_call_order(plan):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            alive = torch.relu(self.weight * x.abs() + 1)
            return torch.relu(-alive)

    assert recipes.survival(Net(), plan.load()) == [1.0, 0.0]


def test_summary_is_mean_and_sample_deviation_over_seeds():
    cell = {"method": "pnnh", "depth": 8, "num_params": 10, "macs": 20, "images_per_second": 5.0}
    (row,) = recipes.summary([cell | {"test_accuracy": a} for a in (0.90, 0.92, 0.94)])
    assert row == {
        "method": "pnnh",
        "depth": 8,
        "params": 10,
        "macs": 20,
        "test_%": 92.0,
        "std": 2.0,
        "n": 3,
        "img/s": 5,
    }


def table(plain, residual, pnnh, depth=56, n=1, std=None):
    sizes = {"plain": 100, "residual": 100, "pnnh": 44}
    scores = {"plain": plain, "residual": residual, "pnnh": pnnh}
    return [
        {
            "method": m,
            "depth": depth,
            "params": sizes[m],
            "macs": 10,
            "test_%": scores[m],
            "std": std,
            "n": n,
            "img/s": 1,
        }
        for m in scores
    ]


def test_the_reading_follows_the_numbers():
    lines = " ".join(reading(table(60.0, 98.0, 99.5)))
    assert "PNNH reaches 99.5 %, 1.5 points above its residual twin (98.0 %), with 0.44 times the parameters" in lines
    assert "the plain net fails to follow: 60.0 %, 39.5 points short" in lines
    assert "one seed each" in lines
    turned = " ".join(reading(table(99.0, 98.0, 90.0, n=3, std=1.0)))
    assert "8.0 points below" in turned
    assert "keeps up: 99.0 %, 1.0 points ahead" in turned
    assert "-8.00 +- 0.82" in turned
    deeper = reading(table(90.0, 90.0, 90.0, depth=20) + table(50.0, 90.2, 95.0))
    assert "From depth 20 to 56 the plain net loses 40.0 points." in deeper
    assert "From depth 20 to 56 the residual net neither gains nor loses: 0.2 points." in deeper
    wider = table(60.0, 98.0, 97.0)
    wider[2]["method"] = "pnnh_wide"
    assert any("Wider PNNH reaches 97.0 %, 1.0 points below its residual twin" in line for line in reading(wider))


def test_command_writes_results_and_a_self_contained_report(tmp_path, capsys):
    sizes = "--depths 8 --epochs 1 --image-size 8 --limit 64 --jobs 1"
    arguments = ["compare", "--methods", "plain,pnnh", "--device", "cpu", *sizes.split(), "--out"]
    assert main([*arguments, str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["plain", "pnnh"]
    needed = {"method", "depth", "seed", "num_params", "macs", "test_accuracy", "train_accuracy", "images_per_second"}
    assert needed <= set(results["rows"][0])
    assert {"command", "versions", "device", "code_version", "date", "settings", "data"} <= set(results)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.findall(r"(?:src|href)=\"https?:", page)
    assert "<script" not in page
    assert page == html(comparison_page(results))
    assert "report.html" in capsys.readouterr().out
