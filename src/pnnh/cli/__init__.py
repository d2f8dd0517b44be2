"""The command line: `pnnh COMMAND`. Each command is one file of this folder, imported only when it is called."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import textwrap

COMMANDS = {
    "compare": "train plain, residual and PNNH nets side by side and report",
    "train": "train one model on one data set",
    "models": "list the models with their depth, parameters and MACs",
    "diagnose": "see, layer by layer, how much of the input is left in any model",
    "certify": "say whether a network is plain, and where it is not",
    "fuse": "fold a plain net into a bare chain of convolutions",
    "convert": "turn a trained residual net into an exactly equal plain one",
    "export": "write a network as .onnx, .pt2 or int8 and check it there",
    "hub": "write a trained net as timm and the Hugging Face Hub read it, with a model card",
    "bench": "measure training and inference side by side, with a control",
}

INTERNAL = 70  # EX_SOFTWARE of sysexits.h


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"usage: pnnh COMMAND [options]\n\ncommands:\n{rows}\n\n`pnnh COMMAND --help` shows a command's options."


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 failed, 2 usage, 70 a fault of this program, 130 interrupted; commands may define others.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from pnnh import __version__

        print(f"pnnh {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        print(f"pnnh: unknown command {name!r}{hint}; `pnnh --help` lists them", file=sys.stderr)
        return 2
    return _guarded(name, rest)


def _guarded(name: str, arguments: list[str]) -> int:
    """Run a command; every error is one line on standard error and an exit code."""
    from pnnh._errors import RunError, UsageError

    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    if any("\0" in word for word in arguments):
        return _say(name, "an argument holds a null byte, which no name of a file or model does", 2)
    try:
        return _with_arguments(importlib.import_module(f"pnnh.cli.{name}").run, name, arguments)
    except UsageError as error:
        return _say(name, str(error), 2)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RunError, OSError) as error:
        return _say(name, str(error), 1)
    except KeyboardInterrupt:
        return _say(name, "interrupted", 130)
    except Exception as error:
        if os.environ.get("PNNH_TRACEBACK"):
            raise
        return _say(name, *_explained(error))


def _explained(error: Exception) -> tuple[str, int]:
    """What the two errors mean that no check can foresee; all others are faults of this program."""
    kind, text = type(error).__name__, str(error)
    if kind == "BrokenProcessPool":
        return "a worker process was killed, perhaps for want of memory; run it again with fewer --jobs", 1
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return f"not enough memory: {text}; use smaller batches, images or models", 1
    return f"internal error, please report it (PNNH_TRACEBACK=1 shows where): {kind}: {text}", INTERNAL


def _say(name: str, text: str, code: int) -> int:
    from pnnh.report.table import printable

    print(printable(f"pnnh {name}: {' '.join(text.split())}"), file=sys.stderr)
    return code


def _with_arguments(run, name: str, arguments: list[str]) -> int:
    """Parse `arguments` by the signature of `run` (tyro), then call it; `run` returns an exit code or None."""
    import tyro

    paragraphs = inspect.cleandoc(run.__doc__).partition("Args:")[0].strip().split("\n\n")
    wrapped = [textwrap.fill(text, 79, initial_indent=" ", subsequent_indent=" ") for text in paragraphs]
    options = {"description": "\n\n".join(wrapped), "prog": f"pnnh {name}"}
    try:
        return tyro.cli(run, **options, args=arguments, config=(tyro.conf.OmitArgPrefixes,)) or 0
    except SystemExit as stop:  # tyro prints its own one-page message
        return int(stop.code or 0)
