"""The bar and the lines that say how far a training is."""

from types import SimpleNamespace

from rich.console import Console

from pnnh.cli import _board
from pnnh.compare import Cell, cells

NOW = SimpleNamespace(epoch=2, epochs=10, step=30, steps=150, images_per_second=512.4, seconds_left=61.2)
WORDS = "epoch 2/10  step 30/150  512 img/s  1:01 left"


def test_without_a_terminal_a_line_comes_every_so_often(capsys, monkeypatch):
    clock = iter([0.0, 3.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(_board.time, "monotonic", lambda: next(clock))
    with _board.Bar(Console(force_terminal=False)) as bar:
        for _ in range(3):
            bar(NOW)
    assert capsys.readouterr().out == WORDS + "\n"


def test_on_a_terminal_there_is_a_bar(capsys):
    console = Console(force_terminal=True, width=100)
    with _board.Bar(console) as bar:
        bar(NOW)
        assert (bar.bars.tasks[0].completed, bar.bars.tasks[0].description) == (0.2, WORDS)
    assert "512 img/s" in capsys.readouterr().out


def test_a_comparison_tells_of_steps_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 3.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(_board.time, "monotonic", lambda: next(clock))
    with _board.Board() as board:
        for _ in range(3):
            board.step(Cell("pnnh", 8, 0), NOW)
    assert capsys.readouterr().out == f"pnnh-8-0  {WORDS}\n"


def test_steps_of_a_net_are_passed_on_at_most_once_a_second(monkeypatch):
    clock, seen = iter([0.0, 0.5, 1.2, 1.2, 1.9, 2.3, 2.3]), []
    monkeypatch.setattr(cells.time, "monotonic", lambda: next(clock))
    step = cells._seldom(seen.append)
    for number in range(4):
        step(number)
    assert seen == [1, 3]
