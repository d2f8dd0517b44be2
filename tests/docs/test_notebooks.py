"""The notebooks run from top to bottom, and what they keep of their outputs is small."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("notebook_runner", ROOT / "notebooks" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_three():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(runner, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = runner.run(path, write=False)
    assert all(cell["execution_count"] for cell in runner.code_cells(done))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_there_and_small(path):
    assert path.stat().st_size < 400_000
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in code)


def test_a_cell_gives_its_text_and_the_value_of_its_last_line(runner):
    outputs = runner.run_cell("print('a')\nx = 2\nx + 1", {}, "cell")
    assert outputs[0]["text"] == "a\n"
    assert outputs[1]["data"] == {"text/plain": "3"}
    assert runner.run_cell("x = 1", {}, "cell") == []
