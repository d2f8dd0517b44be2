"""The clock's arithmetic, the order of its calls, and the counters against sizes known by hand."""

import gc
import itertools
import json

import numpy as np
import pytest
import timm
import torch
from torch import nn

import pnnh.models  # noqa: F401
from pnnh import bench, report
from pnnh.bench import LiveBytes, Op, Rates, Ratio, Setting, TrainingStep, ledger, paired, ratio_of, roofline, verdict
from pnnh.cli import main

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
        peaks[name] = bench.peak_bytes(step, CPU)
    assert peaks["pnnh_resnet32"] < 0.95 * peaks["cifar_resnet32"]


def test_the_ledger_counts_bytes_and_flops_known_by_hand():
    x, kernel = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)

    def work():
        y = nn.functional.conv2d(x, kernel, padding=1)
        y.view(-1)  # moves nothing
        y.relu_().sum().backward()

    ops = {
        (op.phase, op.kind): op for op in ledger(work) if op.name in ("convolution", "convolution_backward", "relu_")
    }
    images, features, kernels = 4 * 3 * 64, 4 * 4 * 64, 4 * 108
    assert ops["forward", "conv"].bytes == images + kernels + features
    assert ops["forward", "conv"].flops == CONV
    assert ops["forward", "activation"].bytes == 2 * features
    assert ops["backward", "conv"].flops == CONV  # of the kernel only: the images need no gradient
    assert all(op.seconds > 0 for op in ops.values())
    assert not [op for op in ledger(work) if op.name == "view"]


def test_the_ledger_counts_what_is_written_in_place_and_into_out():
    x, y = torch.ones(100), torch.ones(100)
    ops = ledger(lambda: (x.add_(y), torch.mul(x, y, out=y), x.view(10, 10), torch.empty(7)))
    assert [(op.name, op.bytes) for op in ops] == [("add_", 1200), ("mul", 1200)]


def test_the_ledger_knows_the_optimiser_from_the_step():
    step = TrainingStep(timm.create_model("pnnh_resnet_tiny"), Setting((3, 8, 8), batch_size=2))
    step()
    phases = {op.phase for op in ledger(step)}
    assert phases == {"forward", "backward", "update"}
    macs = bench.suite.cost(timm.create_model("pnnh_resnet_tiny"), (3, 8, 8)).macs
    assert sum(op.flops for op in ledger(step) if op.phase == "forward") == 2 * 2 * macs


def test_the_roofline_is_the_slower_of_bytes_and_flops():
    rates = Rates("float32", flops=1e9, bandwidth=((1000, 1e9), (10**6, 1e8)))
    assert rates.seconds(Op("a", "add", "forward", 1000, 0, 0.0)) == pytest.approx(1e-6)
    assert rates.seconds(Op("a", "add", "forward", 1001, 0, 0.0)) == pytest.approx(1.001e-5)
    assert rates.seconds(Op("a", "conv", "forward", 1000, 10**6, 0.0)) == pytest.approx(1e-3)
    ops = [Op("a", "add", "forward", 1000, 0, 4e-6), Op("b", "conv", "backward", 1000, 10**6, 4e-3)] * 2
    conv, add, total = roofline(ops, rates)
    assert (conv["kind"], add["kind"], total["kind"]) == ("conv", "add", "all")
    assert conv["measured/predicted"] == pytest.approx(4)
    assert (conv["calls"], total["calls"]) == (2, 4)
    assert total["predicted_ms"] == pytest.approx(2.002)
    assert conv["share_%"] + add["share_%"] == pytest.approx(100, abs=0.2)


def test_the_rates_of_this_device_are_positive(monkeypatch):
    monkeypatch.setitem(bench.roofline.__globals__["GEMM_SIZE"], "cpu", 64)
    monkeypatch.setitem(bench.roofline.__globals__["TRIAD_BYTES"], "cpu", (2**12, 2**14))
    rates = bench.measure_rates(CPU, torch.float32, repeats=1)
    assert rates.flops > 0
    assert [size for size, rate in rates.bandwidth if rate > 0] == [2**12, 2**14]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """One run of the command, as a user would give it."""
    out = tmp_path_factory.mktemp("bench")
    names = ["cifar_resnet_tiny", "pnnh_resnet_tiny"]
    options = ["--batch-size", "2,4", "--image-size", "8", "--pairs", "2", "--out", str(out)]
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
        assert cell["rooflines"].keys() == {"cifar_resnet_tiny", "pnnh_resnet_tiny"}
    assert results.keys() >= {"command", "date", "code_version", "versions", "device"}


def test_the_page_says_what_the_record_says(record):
    results, page = record
    assert page.count("<svg") == 4  # ratios and stacks of two cells
    assert "No difference in time is claimed here." in page
    assert "times the roofline" in page
    assert report.bench_page(results).sections[0].title == results["cells"][0]["title"]


def test_one_report_of_a_preset_names_what_is_missing(monkeypatch, capsys):
    lacking = bench.Preset((("cifar_resnet_tiny", "no_such_net"), ("nor_this", "cifar_resnet_tiny")), 2)
    monkeypatch.setitem(bench.PRESETS, "cifar", lacking)
    assert main(["bench", "--preset", "cifar"]) == 2
    out, error = capsys.readouterr()
    assert out == "left out, not in this installation: no_such_net, nor_this\n"
    assert error == "pnnh bench: nothing of --preset cifar is installed; name models instead\n"


def test_presets_name_twins_that_exist():
    groups, _ = bench.known(bench.PRESETS["cifar"].groups)
    assert groups[0][:3] == ("cifar_resnet56", "pnnh_resnet56", "plain_resnet56")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one MODEL"),
        (["cifar_resnet_tiny", "--preset", "cifar"], "not both"),
        (["cifar_resnet_tiny", "--amp", "fp8"], "amp 'fp8' must be of fp32, bf16"),
        (["cifar_resnet_tiny", "--batch-size", "1"], "batch_size 1 must be at least 2"),
        (["cifar_resnet_tiny", "--batch-size", "two"], "batch_size 'two' must be whole numbers"),
        (["cifar_resnet_tiny", "--pairs", "0"], "pairs 0 must be at least 1"),
    ],
)
def test_a_request_that_cannot_be_meant_is_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
