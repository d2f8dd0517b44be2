"""The clock's arithmetic, the order of its calls, and the memory counter against sizes known by hand."""

import numpy as np
import pytest
import timm
import torch

import pnnh.models  # noqa: F401
from pnnh.bench import LiveBytes, Setting, bench, paired, ratio_of


def test_ratio_is_the_median_of_paired_ratios_with_an_interval():
    rng = np.random.default_rng(0)
    a = rng.uniform(1, 3, 400)
    ratio = ratio_of([(x, 1.2 * x * e) for x, e in zip(a, rng.normal(1, 0.02, 400), strict=True)])
    assert ratio.ratio == pytest.approx(1.2, rel=0.005)
    assert ratio.low < ratio.ratio < ratio.high
    assert ratio.high - ratio.low < 0.02
    assert ratio.differs
    assert not ratio_of([(x, x) for x in a]).differs


def test_pairs_are_interleaved_abba():
    order = []
    result = paired(lambda: order.append("a"), lambda: order.append("b"), device=torch.device("cpu"), pairs=4, warmup=1)
    assert "".join(order) == "ab" + "abbaabba"
    assert result.pairs == 4


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


def test_bench_reports_sizes_ratios_and_control():
    names = ("cifar_resnet_tiny", "pnnh_resnet_tiny")
    said = []
    setting = Setting((3, 8, 8), batch_size=4, pairs=3)
    result = bench([(name, timm.create_model(name)) for name in names], setting, tell=said.append)
    first, second = result.rows()
    assert (first["model"], second["model"]) == names
    assert first["train_time"] == 1.0
    assert second["train_time"] > 0
    assert result.control["params"] == first["params"] != second["params"]
    assert first["train_peak_mb"] > first["infer_peak_mb"] > 0
    assert len(said) == 4
