"""The command line from outside: quick help, few flags, and one clear line for every request that cannot be met."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import pnnh.cli
from pnnh import __version__, report
from pnnh.cli import COMMANDS, main, models
from pnnh.models import registry

NET, SHOW = "weights image-size trust", "format"
FLAGS = {  # all but MODEL and --help
    "bench": f"preset batch-size device amp mode layout pairs out {NET} {SHOW}",
    "certify": f"strict data num out {NET} {SHOW}",
    "compare": "data methods depths epochs seeds out image-size limit batch-size lr recipe held-out family width patch "
    f"device amp compile jobs {SHOW}",
    "convert": f"form dry-run out {NET} {SHOW}",
    "diagnose": f"data images num seed out {NET} {SHOW}",
    "export": f"to out form data {NET} {SHOW}",
    "fuse": f"out form {NET} {SHOW}",
    "hub": "out",
    "models": SHOW,
    "train": "data out recipe epochs batch-size lr seed image-size channels limit device amp compile accumulate "
    "checkpointing watch resume trust",
}
QUICK = ["--depths", "8", "--epochs", "1", "--device", "cpu", "--jobs", "1"]


def compare(*arguments) -> int:
    return main(["compare", *map(str, arguments)])


def test_help_imports_nothing_heavy():
    code = """
import sys
from pnnh.cli import COMMANDS, main
for arguments in [["--help"], ["--version"], ["nonsense"], *([name, "--help"] for name in COMMANDS)]:
    main(arguments)
print(*{name.split(".")[0] for name in sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "timm", "torchvision", "numpy", "matplotlib"} & set(done.stdout.splitlines()[-1].split())


def test_the_table_is_the_folder():
    files = {file.stem for file in Path(pnnh.cli.__file__).parent.glob("[!_]*.py")}
    assert files == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_few_explained_in_80_columns_and_of_one_style(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    flags = re.findall(r"^[^\w\n]{1,4}--([a-z][a-z-]*)", shown, re.MULTILINE)
    assert sorted(flags) == sorted(FLAGS[name].split()), "a new flag: is there no other way?"
    assert max(map(len, shown.splitlines())) <= 80
    assert "None" not in shown
    assert "True,False" not in shown


@pytest.mark.parametrize("words", [["--seeds", "0", "1", "2"], ["--seeds", "0,1,2"], ["--seeds", "0,1", "2", "2,0"]])
def test_lists_take_words_and_commas_alike(words, monkeypatch):
    assert called("compare", words, monkeypatch)["seeds"] == (0, 1, 2)


def test_booleans_have_one_style(monkeypatch):
    assert called("train", ["x", "--no-resume", "--checkpointing"], monkeypatch)["resume"] is False
    assert called("train", ["x"], monkeypatch)["resume"] is True
    assert called("certify", ["x", "y", "--strict", "--trust"], monkeypatch)["models"] == ("x", "y")


def called(name: str, words: list[str], monkeypatch) -> dict:
    """The arguments that a command gets for these words."""
    module, seen = importlib.import_module(f"pnnh.cli.{name}"), {}
    signature = inspect.signature(module.run)
    note = functools.wraps(module.run)(lambda *args, **kwargs: seen.update(signature.bind(*args, **kwargs).arguments))
    monkeypatch.setattr(module, "run", note)
    assert main([name, *words]) == 0
    return seen


def test_usage_and_version(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"pnnh {__version__}\n")


def test_an_unknown_command_names_the_near_one(capsys):
    assert main(["comapre"]) == 2
    assert (
        capsys.readouterr().err
        == "pnnh: unknown command 'comapre' (did you mean 'compare'?); `pnnh --help` lists them\n"
    )


@pytest.mark.parametrize("words", [["--epoch", "3"], ["--depths", "deep"], ["--seeds", "x"], ["--lr", "fast"]])
def test_words_that_do_not_parse_are_usage(capsys, words):
    assert compare(*words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_ours_is_one_line_and_its_own_exit_code(capsys, monkeypatch):
    monkeypatch.setattr("pnnh.cli.models.known", lambda: 1 / 0)
    assert main(["models"]) == 70
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("PNNH_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["models"])


FORMATS = {
    "markdown": lambda text: text.startswith("| model | depth |") and text.splitlines()[1].startswith("| ---"),
    "csv": lambda text: text.startswith("model,depth,params,macs,input\n"),
    "json": lambda text: json.loads(text)["rows"][0].keys() == {"model", "depth", "params", "macs", "input"},
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_table_can_be_pasted(form, capsys):
    assert main(["models", "--format", form]) == 0
    assert FORMATS[form](capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "plain,vgg"], "unknown method 'vgg'; choose from plain, residual, pnnh"),
        (["--depths", "21"], "depth 21 must be 6n + 2"),
        (["--seeds", "-1"], "seed -1 must be between 0 and"),
        (["--seeds", "99999999999999999999"], "seed 99999999999999999999 must be between 0 and"),
        (["--methods", ","], "at least one"),
        (["--data", "digit"], "did you mean 'digits'?"),
        (["--data", "folder:/nowhere"], "no folder /nowhere"),
        (["--data", f"folder:{__file__}"], "no folder"),
        (["--epochs", "-1"], "epochs -1 must be at least 1"),
        (["--batch-size", "1"], "batch_size 1 must be at least 2"),
        (["--lr", "0"], "lr 0"),
        (["--jobs", "0"], "jobs 0 must be at least 1"),
        (["--limit", "5"], "limit 5 must be between"),
        (["--image-size", "4"], "image size 4 must be at least 8"),
        (["--device", "abacus"], "device 'abacus' is not available"),
    ],
)
def test_a_request_that_cannot_be_meant_is_one_line(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    assert compare(*arguments, "--out", out) == 2
    says_one_line(capsys, message)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tmp_path, capsys):
    assert compare("--device", "cuda", "--out", tmp_path / "out") == 2
    says_one_line(capsys, "device 'cuda' is not available to this PyTorch here; use --device cpu")
    assert not (tmp_path / "out").exists()


def says_one_line(capsys, message: str) -> None:
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("pnnh compare: ")
    assert error.count("\n") == 1


def folder(root: Path, train: dict[str, int], test: dict[str, int]) -> Path:
    """Class folders with so many 8x8 grey images each."""
    for part, classes in (("train", train), ("test", test)):
        for name, number in classes.items():
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                Image.new("L", (8, 8), 40 * index).save(root / part / name / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PNNH_CACHE", str(tmp_path / "cache"))


def test_an_empty_class_is_named(tmp_path, capsys):
    images = folder(tmp_path / "images", {"cat": 3, "dog": 0}, {"cat": 1, "dog": 1})
    assert compare("--data", f"folder:{images}", "--out", tmp_path / "out") == 2
    says_one_line(capsys, "class 'dog'")
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_readable_image_is_a_failure(tmp_path, capsys):
    images = folder(tmp_path / "images", {"cat": 3, "dog": 1}, {"cat": 1, "dog": 1})
    (images / "train" / "dog" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n, or so it seems")
    assert compare("--data", f"folder:{images}", "--out", tmp_path / "out") == 1
    assert "class 'dog'" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tmp_path, capsys):
    images = folder(tmp_path / "images", {"cat": 1}, {"cat": 1})
    (images / "train").chmod(0)
    try:
        assert compare("--data", f"folder:{images}", "--out", tmp_path / "out") in (1, 2)
        says_one_line(capsys, "Permission denied")
    finally:
        (images / "train").chmod(0o700)


def test_grey_images_in_folders_reach_nets_of_three_channels(tmp_path, capsys):
    images = folder(tmp_path / "images", {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})
    arguments = ["--data", f"folder:{images}", "--methods", "pnnh", "--batch-size", "4"]
    assert compare(*arguments, *QUICK, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_out_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert compare("--out", tmp_path / "file" / "out") == 2
    says_one_line(capsys, f"cannot write to {tmp_path / 'file' / 'out'}")
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def no_file_larger_than(size: int):
    """Writes beyond `size` bytes fail as they do on a full disk, for root as well."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_for_out_is_said_before_the_work(tmp_path, capsys):
    with no_file_larger_than(0):
        assert compare("--out", tmp_path / "out") == 2
    says_one_line(capsys, "cannot write to")


def test_a_disk_that_fills_up_leaves_the_old_report_whole(tmp_path):
    page = report.write_text(tmp_path / "report.html", "whole")
    with no_file_larger_than(100), pytest.raises(OSError, match="large"):
        report.write_text(page, "x" * 1000)
    assert page.read_text() == "whole"
    assert os.listdir(tmp_path) == ["report.html"]


SMALL = ("_tiny", "_test", "_test_patch4_16", "pnnh_resnet20", "pnnh_resnet44", "plain_resnet50")


def test_the_list_of_models_is_the_registry_and_its_figures_are_counted():
    """All names; the figures of a net of every family and of every rule for its widths."""
    table = {row["model"]: row for row in models.known()}
    assert list(table) == list(registry.MODELS)
    for name in table:
        if name.endswith(SMALL):
            assert models.counted(name) == table[name], "run python results/scripts/model_sizes.py"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "nosuchmodel"],
        ["train", "pnnh_resnet_tiny", "--epochs", "0"],
        ["train", "pnnh_resnet_tiny", "--seed", "-1"],
        ["compare", "--epochs", "0"],
        ["compare", "--held-out", "-3"],
        ["compare", "--recipe", "default", "--methods", "vgg"],
        ["diagnose", "nosuchmodel", "--out", "runs/diagnosis"],
        ["export", "pnnh_resnet_tiny", "--out", "runs/export"],
        ["bench", "nosuchmodel", "--out", "runs/bench"],
    ],
)
def test_a_refused_command_leaves_no_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_comparison_says_that_the_same_command_goes_on(monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("pnnh.compare"), "compare", stopped)
    assert compare("--data", "digits") == 130
    assert capsys.readouterr().err == "pnnh compare: interrupted; the same command goes on where it stopped\n"


def test_a_null_byte_is_one_line(capsys):
    assert compare("--out", "a\0b") == 2
    says_one_line(capsys, "an argument holds a null byte")
