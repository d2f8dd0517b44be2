"""The figures in the reports of fuse, convert and export, against ones worked out by hand."""

import hashlib

import pytest
import torch
from test_convert import ACTS, EXAMPLE, Net, with_statistics
from torch import nn

from pnnh.convert import convert, export, fuse
from pnnh.convert.equivalence import agreement, compare
from pnnh.cost import measure_cost, plan_memory


def test_relative_error_is_measured_on_the_references_scale():
    reference = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    found = agreement(reference, reference + torch.tensor([[0.0, 0.0], [0.0, 3.0]]))
    assert (found.relative_error, found.argmax, found.samples) == (0.75, 0.5, 2)


def test_equality_is_tried_on_noise_as_well_as_on_the_example():
    positive = torch.rand(3, 4)
    assert compare(nn.Identity(), nn.ReLU(), positive).relative_error > 0.5
    assert compare(nn.Identity(), nn.ReLU(), positive).samples == 7  # also a single one
    assert compare(nn.Identity(), nn.ReLU(), positive, noise=False).relative_error == 0


def test_equality_is_judged_in_float64_and_eval_mode():
    thirds = nn.Linear(3, 3)
    other = nn.Linear(3, 3, dtype=torch.float64)
    with torch.no_grad():
        other.weight.copy_(thirds.weight.double() * (1 + 1e-9))
        other.bias.copy_(thirds.bias)
    assert 1e-11 < compare(thirds, other, torch.randn(2, 3)).relative_error < 2e-9
    noisy = nn.Sequential(nn.Dropout(0.5), thirds)
    assert compare(noisy, thirds, torch.randn(2, 3)).relative_error == 0
    assert noisy.training


def test_cost_of_a_convolution():
    cost = measure_cost(nn.Conv2d(3, 4, 3, padding=1), torch.randn(5, 3, 8, 8))
    assert vars(cost) == {"num_params": 112, "macs": 3 * 4 * 9 * 64, "activation_bytes": (3 + 4) * 64 * 4}


def test_cost_counts_a_shared_layer_once_as_parameters_and_twice_as_work():
    conv = nn.Conv2d(4, 4, 1)
    once, twice = (measure_cost(nn.Sequential(*[conv] * n), torch.randn(2, 4, 8, 8)) for n in (1, 2))
    assert (twice.num_params, twice.macs) == (once.num_params, 2 * once.macs)


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.first(x).relu().flatten(1).view(-1, 4, 4, 4)
        return torch.cat([self.second(y), x], 1)


VIEWS = ("view", "_unsafe_view", "_reshape_alias")


def test_memory_plan_step_by_step():
    """Units of one channel: x 2, first 4, second 2, cat 4; relu writes in place, views own nothing."""
    plan = plan_memory(Concatenated(), torch.randn(1, 2, 4, 4))
    unit = 4 * 4 * 4
    steps = [(step.op, step.new_bytes // unit, step.live_bytes // unit, step.live_buffers) for step in plan.steps]
    assert [step for step in steps if step[0] not in VIEWS] == [
        ("input", 2, 2, 1),
        ("convolution", 4, 6, 2),
        ("relu", 0, 6, 2),
        ("convolution", 2, 8, 3),
        ("cat", 4, 8, 3),
    ]
    assert all(new == 0 for op, new, *_ in steps if op in VIEWS)
    assert (plan.peak_bytes, plan.peak_buffers) == (8 * unit, 3)
    assert plan.rows()[0]["live_bytes"] == 2 * unit


@pytest.mark.parametrize(("pre", "carried"), [(False, [(1, 1, 4), (1, 2, 6)]), (True, [(2, 1, 4), (2, 2, 6)])])
def test_one_copy_carries_what_is_never_negative_and_a_pair_the_rest(pre, carried):
    """(activations crossed, copies, channels): a ReLU's output alone; a strided projection as a pair, being smaller."""
    _, report = convert(with_statistics(Net(ACTS["relu"], pre=pre)), EXAMPLE, dry_run=True)
    assert [(carry.crossed, carry.copies, carry.channels) for carry in report.carries] == carried


def test_fusion_reports_both_sizes_and_both_roundings():
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    fusion = fuse(model, EXAMPLE).fusion
    assert (fusion.parameters_before, fusion.parameters_after) == (108 + 8, 108 + 4)
    assert fusion.macs_before == fusion.macs_after == 108 * 14 * 14
    assert fusion.relative_error < 1e-14 < fusion.rounding_fused < 1e-6
    assert 1e-14 < fusion.rounding_unfused < 1e-6
    double = fuse(model.double(), EXAMPLE.double()).fusion
    assert max(double.rounding_fused, double.rounding_unfused) < 1e-14


def test_norms_that_have_statistics_are_calibrated_however_they_came():
    """Loaded statistics without a count, or a count with initial statistics, are no sign of an untrained norm."""
    for change in (lambda norm: norm.running_mean.fill_(0.1), lambda norm: norm.num_batches_tracked.fill_(3)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        change(model[1])
        assert fuse(model, EXAMPLE).fusion.relative_error < 1e-14


def test_the_hash_in_the_report_is_that_of_the_file(tmp_path):
    done = export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), EXAMPLE, tmp_path / "net.pt2")
    data = (tmp_path / "net.pt2").read_bytes()
    assert (done.sha256, done.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert done.worst.samples == 1 + 3 + 8
