"""The sentences and figures of a comparison's report, against intervals computed here and rows made up for them."""

import io
import math

import pytest
from rich.console import Console

from pnnh.report.comparison import as_read, difference, reading, student
from pnnh.report.frontier import LOOKS, anchors, frontier
from pnnh.report.table import terminal

SIZES = {"pnnh": 100, "residual": 200, "residual_narrow": 101, "residual_short": 130, "residual_same_block": 99}
DATA = {"name": "cifar10", "num_test": 10_000, "num_classes": 10, "image_size": 32}


def results(depth=20, num_test=10_000, classes=10, train=0.9, **tests):
    """Rows of `depth`: a list of accuracies in % by method, one a seed."""
    rows = [
        {
            "method": method,
            "depth": depth,
            "seed": seed,
            "num_params": SIZES.get(method, 200),
            "macs": 10,
            "step_ms": 3.0,
            "test_accuracy": value / 100,
            "train_accuracy": train,
        }
        for method, values in tests.items()
        for seed, value in enumerate(values)
    ]
    return {"rows": rows, "data": DATA | {"num_test": num_test, "num_classes": classes}}


def said(*parts):
    return "\n".join(reading({"rows": [row for part in parts for row in part["rows"]], "data": parts[0]["data"]}))


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (4, 2.776), (11, 2.201), (15, 2.131), (60, 2.000)])
def test_students_quantile_is_the_tabled_one(freedom, quantile):
    assert student(freedom) == pytest.approx(quantile, abs=3e-3)


def test_seeds_give_welchs_interval():
    """Numbers of a textbook computation: means 92 and 90, variances 1 and 4, three seeds a side, 2.94 -> 2 degrees."""
    gap = difference([91, 92, 93], [88, 90, 92], 10_000)
    assert gap.points == pytest.approx(2)
    assert gap.half_width == pytest.approx(4.303 * math.sqrt(1 / 3 + 4 / 3), rel=1e-3)
    assert gap.kind == "95 % Welch interval over 3 and 3 seeds"
    assert str(gap).startswith("no difference shown (+2.00 +- 5.56 points")


def test_one_seed_gives_the_binomial_interval_over_the_test_images():
    gap = difference([90.0], [80.0, 82.0], 1000)
    assert gap.half_width == pytest.approx(196 * math.sqrt((0.9 * 0.1 + 0.81 * 0.19) / 1000), rel=1e-9)
    assert gap.kind == "95 % binomial interval over 1,000 test images"
    assert str(gap).startswith("9.0 points above (+9.00 +-")


def test_seeds_that_agree_exactly_are_no_proof():
    assert difference([90.0, 90.0], [89.0, 89.0], 100).half_width > 5


def test_a_difference_is_claimed_only_outside_its_interval():
    lines = said(results(pnnh=[81.1], residual=[82.1]))
    assert "PNNH of depth 20 (81.1 %) against residual of depth 20 (82.1 %), with 0.50 times the parameters" in lines
    assert "no difference shown (-1.00 +- 1.07 points, 95 % binomial interval over 10,000 test images)" in lines
    assert "below" not in lines
    lower = said(results(pnnh=[79.1], residual=[82.1]))
    assert "3.0 points below (-3.00 +- 1.10 points" in lower


def test_the_twin_of_equal_size_is_always_named():
    lines = said(results(pnnh=[80], residual=[80], residual_narrow=[80], residual_short=[80], residual_same_block=[80]))
    assert "against residual, narrow of depth 20 (80.0 %), with as many parameters" in lines
    assert "against residual, short of depth 20 (80.0 %), with 0.77 times the parameters" in lines
    assert "against residual, PNNH's block of depth 20 (80.0 %), with as many parameters" in lines
    assert "No residual net of the size" not in lines
    assert "No residual net of the size of PNNH of depth 20 was trained" in said(results(pnnh=[80], residual=[80]))


def test_a_residual_net_of_another_depth_counts_where_it_is_as_large():
    shallow, deep = results(residual=[82]), results(depth=38, pnnh=[82])
    for row in deep["rows"]:
        row["num_params"] = 199
    assert "PNNH of depth 38 (82.0 %) against residual of depth 20 (82.0 %), with as many parameters" in said(
        shallow, deep
    )


def test_chance_test_size_and_gaps_are_named():
    lines = said(results(num_test=360, pnnh=[12.0], plain=[50.0], train=0.995))
    assert "Accuracies are shares of 360 test images; always the same answer gives 10 %." in lines
    assert "PNNH of depth 20: 12.0 % is not distinguishable from guessing." in lines
    assert "plain of depth 20: training accuracy, 99.5 %, is 49.5 points above test accuracy" in lines
    assert "always the same answer gives 1 %" in said(results(classes=100, pnnh=[50]))
    assert "above test" not in said(results(pnnh=[80.0]))


def test_depths_of_a_method_are_compared():
    assert "plain, depth 56 against 20: 40.0 points below" in said(results(plain=[90]), results(depth=56, plain=[50]))
    assert "residual, depth 56 against 20: no difference shown" in said(
        results(residual=[90, 90.5]), results(depth=56, residual=[90.2, 90.4])
    )


def test_methods_differ_in_more_than_colour():
    assert len({(look.marker, str(look.line)) for look in LOOKS.values()}) >= len(LOOKS) - 2
    for a, b in [("pnnh", "residual"), ("residual_narrow", "residual_short"), ("residual", "residual_2015")]:
        assert (LOOKS[a].marker, LOOKS[a].line) != (LOOKS[b].marker, LOOKS[b].line)


def test_published_results_stand_beside_the_same_pixels_only():
    assert {len(marks) for marks in anchors(DATA).values()} == {4, 2, 3}
    assert not anchors(DATA | {"image_size": 16})
    assert not anchors(DATA | {"num_test": 5000})
    assert not anchors(DATA | {"name": "digits"})
    with_marks, without = (frontier(results(pnnh=[80]) | {"data": data}) for data in (DATA, DATA | {"name": "digits"}))
    assert len(with_marks) > len(without)


def test_the_table_fits_80_columns_and_has_deviations_only_of_several_seeds():
    row = {"method": "residual_same_block", "depth": 110, "params": 270_154, "macs": 40_551_040}
    several = [row | {"test_%": 92.31, "std": 0.12, "n": 3, "step_ms": 352.7}]
    text = Console(width=200, file=io.StringIO())
    text.print(terminal(as_read(several)))
    assert max(map(len, text.file.getvalue().splitlines())) <= 80
    (single,) = as_read([several[0] | {"std": None, "n": 1}])
    assert "std" not in single
    assert single["ms"] == 352.7
