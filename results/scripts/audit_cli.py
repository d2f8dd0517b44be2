"""Odd command lines, drawn at random and run in this process: none may end in a traceback or in a fault of ours.

    python results/scripts/audit_cli.py [NUMBER] [SEED]

Writes results/audit-cli.json: how many lines ended in which exit code, and every line that went wrong.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import re
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pnnh.cli import COMMANDS, INTERNAL, main
from pnnh.provenance import environment
from pnnh.report import json_text, write_text

ROOT = Path(__file__).resolve().parents[2]
GOOD = ("pnnh_resnet_tiny", "cifar_resnet_tiny", "plain_resnet_tiny", "pnnh_vit_test_patch4_16")
MODELS = shlex.split(
    "nosuch resnet1o '' ' ' : a:b:c torch.nn:Identity torch:Tensor torch.nn:Nothing broken:f mine:boom mine:leave "
    "mine:number mine:dead mine:same mine:needs mine:printer . / .. /dev/null empty half text 'a$x_$' '[red]x[/red]' "
    "=1+1 -- -1 local-dir:half"
)
NUMBERS = shlex.split("-1 0 1 2 7 8 16 1e3 nan inf 3.5 99999999999999999999 -99999999999 x '' ٣")
TEXTS = shlex.split(
    "'' x cpu cuda cuda:99 meta mps xla cpu:7 digits digit folder: folder:/nowhere imagefolder:empty folder:text "
    "[bold] 'a$b' pretrained random text half empty w.safetensors fp32 bf16 eager cifar none None True plain,pnnh 0,1 "
    ", 1,,2 structured csv json markdown pt2"
)
PATHS = [*shlex.split("out out/deep text text/x /proc/none /dev/full /dev/null x.json x.tflite ''"), "\0", "n" * 300]
KINDS = {
    "numbers": shlex.split(
        "--seed --seeds --epochs --batch-size --image-size --limit --num --pairs --jobs --depths --lr --holdout "
        "--width --patch --accumulate --channels"
    ),
    "paths": shlex.split("--out --images --weights"),
    "texts": shlex.split(
        "--data --device --amp --mode --layout --preset --form --to --recipe --family --methods --format --weights"
    ),
    "flags": shlex.split("--strict --no-strict --dry-run --resume --no-resume --trust --checkpointing --nonsense"),
}
QUICK = {
    "train": ["--epochs", "1", "--limit", "30", "--image-size", "8", "--batch-size", "10"],
    "compare": [
        "--methods",
        "pnnh",
        "--depths",
        "8",
        "--epochs",
        "1",
        "--limit",
        "30",
        "--image-size",
        "8",
        "--jobs",
        "1",
    ],
    "bench": ["--pairs", "1", "--batch-size", "2", "--image-size", "8"],
    "diagnose": ["--num", "8", "--image-size", "16"],
}
MINE = """import sys
from torch import nn

def boom(): raise RuntimeError("boom\\nand more")
def leave(): sys.exit(7)
def number(): return 3
def dead(): raise KeyError
def needs(x): return nn.Linear(2, 2)
def printer(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10), nn.ReLU())

class Same(nn.Module):
    def forward(self, x): raise IndexError("no")

def same(): return Same()
"""
FILES = {"broken.py": "def f(:\n", "mine.py": MINE, "text": "a file\n", "w.safetensors": "no tensors\n"}
FILES |= {"half/record.json": '{"model": [1, 2]}', "empty/.keep": ""}


@functools.cache
def flags(name: str) -> set[str]:
    """The options that `pnnh NAME --help` shows."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([name, "--help"])
    return set(re.findall(r"--[a-z][a-z-]*", out.getvalue()))


def drawn(draw: random.Random) -> list[str]:
    """A command line: a command, a model or two, and up to four odd options behind those that keep it quick."""
    name = draw.choice([*COMMANDS, *COMMANDS, "comand", ""])
    words = [name]
    if name in COMMANDS and name not in ("compare", "models") and draw.random() < 0.95:
        words += [draw.choice(GOOD if draw.random() < 0.8 else MODELS) for _ in range(draw.choice((1, 1, 1, 2)))]
    words += QUICK.get(name, [])
    if name in ("fuse", "export", "hub", "train", "compare") and draw.random() < 0.9:
        words += ["--out", "out"]
    pools = {"numbers": NUMBERS, "paths": PATHS, "texts": TEXTS}
    known = flags(name) if name in COMMANDS else set()
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        kind = draw.choice([*KINDS])
        fitting = [flag for flag in KINDS[kind] if flag in known]
        words.append(draw.choice(fitting if fitting and draw.random() < 0.9 else KINDS[kind]))
        if kind != "flags" and draw.random() < 0.95:
            words += draw.choices(pools[kind if draw.random() < 0.8 else "texts"], k=draw.choice((1, 1, 1, 2)))
    return words


def outcome(words: list[str]) -> tuple[int | str, str]:
    """The exit code, or the name of the exception that came out, and the last line of standard error."""
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code: int | str = main(words)
    except BaseException as caught:
        return type(caught).__name__, str(caught)[:300]
    return code, (error.getvalue().strip().splitlines() or [""])[-1][:300]


def fault(code: int | str, said: str, folders: set[str]) -> str | None:
    """What is wrong about an outcome, or None."""
    if isinstance(code, str):
        return f"{code}: {said}"
    if code == INTERNAL or "Traceback" in said:
        return said
    if code not in (0, 1, 2, 3, 75):
        return f"exit code {code}: {said}"
    return f"a usage error left {sorted(folders)}" if code == 2 and folders else None


def audit(number: int, seed: int) -> dict:
    """Run `number` lines in a folder of their own."""
    draw, codes, faults = random.Random(seed), Counter(), []
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    before = set(os.listdir("."))
    for index in range(number):
        words = drawn(draw)
        code, said = outcome(words)
        left = set(os.listdir(".")) - before - {"__pycache__"}
        wrong = fault(code, said, left)
        codes[str(code)] += 1
        if wrong:
            faults.append({"line": words, "fault": wrong})
            print(index, words, wrong, file=sys.stderr, flush=True)
        before |= left if code == 0 else set()
    return {"lines": number, "seed": seed, "exit_codes": dict(sorted(codes.items())), "faults": faults}


if __name__ == "__main__":
    number, seed = (int(word) for word in (*sys.argv[1:], *("400", "0")[len(sys.argv) - 1 :]))
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        record = audit(number, seed)
        os.chdir(home)
    write_text(ROOT / "results" / "audit-cli.json", json_text(record | environment()))
    print(f"{number} lines, {len(record['faults'])} faults, exit codes {record['exit_codes']}")
