"""docs/training-deep-plain-nets.md says what the records say, and the comparison uses what the tuning chose."""

import json
import re
from pathlib import Path

import pytest
import training_tables as script

from pnnh.recipes import METHODS, RECIPES
from pnnh.train import SGD, Muon, load_data

ROOT = Path(__file__).parents[1]
MUON = RECIPES["muon"](load_data("digits", limit=20)).optimizer


def test_the_tables_of_the_page_are_those_of_the_records():
    page = script.PAGE.read_text()
    assert script.rendered(page) == page, "run python results/scripts/training_tables.py"
    assert {match[2] for match in script.SECTION.finditer(page)} == script.BODIES.keys()


def test_the_figures_of_the_page_are_those_of_the_records():
    for setting, named in script.comparisons().items():
        drawn = (script.PAGE.parent / script.picture(setting)).read_text()
        assert drawn == script.accuracy(script.together(named)), "run python results/scripts/training_tables.py"


def test_effects_are_paired_by_seed(tmp_path, monkeypatch):
    """The seed that the base lacks is left out of the effect, not out of the mean."""
    rows = [("base", 0, 0.50), ("base", 1, 0.60), ("wide", 0, 0.53), ("wide", 1, 0.61), ("wide", 2, 0.90)]
    common = {"claim": "a claim", "num_params": 1000, "macs": 2_000_000}
    record = {"rows": [{"idea": i, "seed": s, "held_out_accuracy": a} | common for i, s, a in rows]}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ideas.json").write_text(json.dumps(record))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    wide = next(line for line in script.BODIES["ideas"]().splitlines() if line.startswith("| wide"))
    assert wide == "| wide | a claim | 68.0 +- 19.5 (3) | +2.0 | 1k | 2.0M |"
    assert "wide" not in script.ideas(record, ("base",))


def test_a_net_of_two_records_counts_once_and_must_be_one_net():
    row = {"method": "pnnh", "depth": 20, "seed": 0, "test_accuracy": 0.5}
    assert script.pooled([{"rows": [row]}, {"rows": [dict(row), row | {"seed": 1}]}]) == [row, row | {"seed": 1}]
    with pytest.raises(ValueError, match=r"0\.5 in one record, 0\.6 in another"):
        script.pooled([{"rows": [row]}, {"rows": [row | {"test_accuracy": 0.6}]}])


def test_the_methods_have_what_was_chosen_for_them():
    """Of those whose rates were tuned, three at least."""
    record = json.loads((ROOT / "results" / "rivals-tuned.json").read_text())
    for method, best in record["chosen"].items():
        if len({row["lr"] for row in record["rows"] if row["method"] == method}) >= 3:
            assert METHODS[method].lr.get(SGD, 0.1) == best["lr"], method
            assert record["defaults"][method] | METHODS[method].options == best["options"], method


def test_the_rivals_have_the_rates_chosen_for_them_under_muon():
    """Residual and PNNH nets have what is best in the larger search, of three rates at least."""
    chosen = json.loads((ROOT / "results" / "rivals-tuned-muon.json").read_text())["chosen"]
    rates = {method: METHODS[method].lr.get(Muon, MUON.lr) for method in chosen}
    rows = json.loads((ROOT / "results" / "ideas-current.json").read_text())["rows"]
    for method, prefix in (("pnnh", "Muon"), ("residual", "residual, Muon")):
        found = {row["idea"]: row["held_out_accuracy"] for row in rows if row["seed"] == 0}
        found = {
            float(idea.split()[-1]): score for idea, score in found.items() if re.fullmatch(rf"{prefix} \S+", idea)
        }
        assert len(found) >= 3
        assert rates.pop(method) == max(found, key=found.__getitem__), method
    assert rates == {method: chosen[method]["lr"] for method in rates}
