"""The clock's arithmetic, the order of its calls, and the counters against sizes known by hand."""

import gc
import itertools
import json

import numpy as np
import pytest
import timm
import torch

import pnnh.models  # noqa: F401
from pnnh import bench, report
from pnnh._errors import RunError, UsageError
from pnnh.bench import PRESETS, WORKS, Preset, Ratio, Setting, TrainingStep, paired, presets, ratio_of
from pnnh.bench.suite import verdict
from pnnh.cli import main
from pnnh.cost import LiveBytes, peak_bytes

CPU = torch.device("cpu")
CONV = 2 * 4 * 3 * 9 * 64  # FLOPs of a 3x3 convolution, 3 -> 4 channels, on one 8x8 image


def test_ratio_is_the_median_of_paired_ratios_with_an_interval():
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 3, 400)
    ratio = ratio_of([(x, 1.2 * x * e) for x, e in zip(a, rng.normal(1, 0.02, 400), strict=True)])
    assert ratio.ratio == pytest.approx(1.2, rel=0.005)
    assert ratio.low < ratio.ratio < ratio.high
    assert ratio.high - ratio.low < 0.02
    assert ratio.differs
    assert not ratio_of([(x, x) for x in a]).differs


def test_pairs_are_interleaved_and_every_round_makes_both_sides_anew():
    order = []

    def maker(name):
        def make():
            order.append(f"{name}:")
            return lambda: order.append(name)

        return make

    result = paired(maker("a"), maker("b"), device=CPU, pairs=4, rounds=2, repeats=2, warmup=1)
    assert order == ["a:", "b:", *"abaabbbbaa", "b:", "a:", *"abaabbbbaa"]
    assert result.wall.pairs == result.cpu.pairs == 4


@pytest.mark.parametrize(("ratios", "pairs"), [([2.0], 3), ([1.0, 2.0, 3.0], 12), ([1.0, 2.0, 3.0] + [2.0] * 9, 9)])
def test_rounds_are_added_until_the_ratio_is_known(monkeypatch, ratios, pairs):
    from pnnh.bench import clock

    given = itertools.cycle(ratios)
    monkeypatch.setattr(clock, "_pair", lambda *_, **__: ((1.0, 1.0), (next(given),) * 2))
    make = lambda: lambda: None  # noqa: E731
    assert paired(make, make, device=CPU, pairs=3, rounds=1, error=0.015).wall.pairs == pairs


def test_no_garbage_is_collected_while_the_clock_runs():
    states = []
    paired(lambda: lambda: states.append(gc.isenabled()), lambda: lambda: None, device=CPU, pairs=2, rounds=1)
    assert not any(states)
    assert gc.isenabled()


def test_the_cpu_clock_does_not_count_waiting():
    import time

    result = paired(lambda: lambda: time.sleep(0.004), lambda: lambda: sum(range(60_000)), device=CPU, pairs=3)
    assert result.cpu.median_a < 0.5 * result.wall.median_a
    assert result.busy < 0.9


def ratio(low, high, pairs=30):
    return Ratio((low + high) / 2, low, high, pairs, 1.0, 1.0)


@pytest.mark.parametrize(
    ("measured", "control", "said"),
    [
        (ratio(1.1, 1.2), ratio(0.99, 1.01), "slower"),
        (ratio(0.8, 0.9), ratio(0.99, 1.01), "faster"),
        (ratio(0.9, 1.1), ratio(0.99, 1.01), "no difference"),
        (ratio(0.8, 0.9), ratio(1.01, 1.02), "control off"),
        (ratio(0.8, 0.9, pairs=29), ratio(0.99, 1.01), "too few pairs"),
    ],
)
def test_a_difference_is_claimed_only_beside_a_quiet_control(measured, control, said):
    assert verdict(measured, control) == said


def test_live_bytes_counts_storages_once_and_frees_them():
    with LiveBytes() as memory:
        x = torch.zeros(1000)
        view = x[:10].view(5, 2)
        y = x + 1
        assert memory.now == 8000
        del y
        assert memory.now == 4000
        del x
        assert memory.now == 4000  # the view keeps the storage
        del view
    assert memory.now == 0
    assert memory.peak == 8000


def test_a_training_step_of_the_plain_net_needs_less_memory_than_its_twins():
    peaks = {}
    for name in ("pnnh_resnet32", "cifar_resnet32"):
        step = TrainingStep(timm.create_model(name, widths=(4, 8, 16)), Setting((3, 16, 16), batch_size=4))
        step()
        peaks[name] = peak_bytes(step, CPU)
    assert peaks["pnnh_resnet32"] < 0.95 * peaks["cifar_resnet32"]


def test_the_function_gives_numbers_and_leaves_the_models_as_found():
    nets = {name: timm.create_model(name) for name in ("cifar_resnet_tiny", "pnnh_resnet_tiny")}
    before = {name: {key: value.clone() for key, value in net.state_dict().items()} for name, net in nets.items()}
    random, lines = torch.get_rng_state(), []
    result = bench(nets, Setting((3, 8, 8), batch_size=2, pairs=2, rounds=1), tell=lines.append)
    assert torch.equal(random, torch.get_rng_state())
    for name, net in nets.items():
        assert net.training
        assert all(torch.equal(value, before[name][key]) for key, value in net.state_dict().items())
    assert len(lines) == 2 * len(WORKS)
    first, second = result.rows()
    assert (first["train_time"], first["train_low"], first["train_verdict"]) == (1.0, None, None)
    for work in WORKS:
        low, middle, high = (second[f"{work}_{key}"] for key in ("low", "time", "high"))
        assert 0 < low <= middle <= high
    assert result.control["model"] == "cifar_resnet_tiny (control)"
    assert repr(result).startswith("Benchmark(cifar_resnet_tiny, pnnh_resnet_tiny: 2 images of 3x8x8")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"pairs": 0}, "pairs 0 must be at least 1"),
        ({"input_size": (3, 0, 8)}, "three positive numbers"),
        ({"amp": "fp8"}, "amp 'fp8' must be fp32 or bf16"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(choice, message):
    with pytest.raises(UsageError, match=message):
        Setting(**choice)


def test_a_model_that_does_not_run_is_named_with_the_setting():
    net = timm.create_model("pnnh_resnet_tiny")
    with pytest.raises(RunError, match=r"mine cannot be timed with 2 images of 1x8x8"):
        bench({"mine": net}, Setting((1, 8, 8), batch_size=2, pairs=1))
    with pytest.raises(UsageError, match="batch norm needs two images"):
        bench({"mine": net}, Setting(batch_size=1))
    with pytest.raises(UsageError, match="at least one model"):
        bench({})


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """One run of the command, as a user would give it."""
    out = tmp_path_factory.mktemp("bench")
    names = ["cifar_resnet_tiny", "pnnh_resnet_tiny"]
    options = ["--batch-size", "2", "4", "--image-size", "8", "--pairs", "2", "--out", str(out)]
    assert main(["bench", *names, *options]) == 0
    return json.loads((out / "results.json").read_text()), (out / "report.html").read_text()


def test_the_record_holds_every_cell_with_its_control(record):
    results, _ = record
    assert [cell["setting"]["batch_size"] for cell in results["cells"]] == [2, 4]
    for cell in results["cells"]:
        first, second = cell["rows"]
        assert (first["model"], second["model"]) == ("cifar_resnet_tiny", "pnnh_resnet_tiny")
        assert first["train_time"] == 1.0
        assert second["train_time"] > 0 < second["latency_ms"]
        assert second["train_verdict"] == "too few pairs"
        assert cell["control"]["params"] == first["params"] != second["params"]
        assert first["train_peak_mb"] > first["infer_peak_mb"] > 0
        assert first["optimizer_mb"] == pytest.approx(4e-6 * first["params"], abs=1e-3)
        assert first["flops"] == 2 * first["macs"]
        assert second["train_low"] <= second["train_time"] <= second["train_high"]
    assert results.keys() >= {"command", "date", "code_version", "versions", "device"}


def test_the_page_says_what_the_record_says(record):
    results, page = record
    assert page.count("<svg") == 2  # the ratios of two cells
    assert "No difference in time is claimed here." in page
    assert report.bench_page(results).sections[0].title == results["cells"][0]["title"]


def test_one_report_of_a_preset_names_what_is_missing(monkeypatch, capsys):
    lacking = Preset((("cifar_resnet_tiny", "no_such_net"), ("nor_this", "cifar_resnet_tiny")), 2)
    monkeypatch.setitem(PRESETS, "cifar", lacking)
    assert main(["bench", "--preset", "cifar"]) == 2
    out, error = capsys.readouterr()
    assert out == "left out, not in this installation: no_such_net, nor_this\n"
    assert error == "pnnh bench: nothing of --preset cifar is installed; name models instead\n"


def test_presets_name_twins_that_exist():
    groups, _ = presets.known(PRESETS["cifar"].groups)
    assert groups[0][:3] == ("cifar_resnet56", "pnnh_resnet56", "plain_resnet56")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one MODEL"),
        (["--preset", "audio"], "unknown --preset 'audio'; use cifar, imagenet, vit"),
        (["cifar_resnet_tiny", "--preset", "cifar"], "or a --preset"),
        (["cifar_resnet_tiny", "--amp", "fp8"], "amp 'fp8' must be fp32 or bf16"),
        (["cifar_resnet_tiny", "--batch-size", "1"], "batch_size 1 must be at least 2"),
        (["cifar_resnet_tiny", "--pairs", "0"], "pairs 0 must be at least 1"),
    ],
)
def test_a_request_that_cannot_be_meant_is_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
