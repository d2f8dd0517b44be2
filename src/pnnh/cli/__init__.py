"""`pnnh`: a table of commands. Each lives in one file and is imported only when it is called."""

from __future__ import annotations

import importlib
import sys

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


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"usage: pnnh COMMAND [options]\n\ncommands:\n{rows}\n\n`pnnh COMMAND --help` shows a command's options."


def main(argv: list[str] | None = None) -> int:
    """Run one command. The exit code: 0 done, 1 failed, 2 usage, 130 interrupted; commands may define others."""
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
    from pnnh._errors import RunError, UsageError

    try:
        run = importlib.import_module(f"pnnh.cli.{name}").run
        return _with_arguments(run, name, rest)
    except UsageError as error:
        print(f"pnnh {name}: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"pnnh {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"pnnh {name}: interrupted", file=sys.stderr)
        return 130


def _with_arguments(run, name: str, arguments: list[str]) -> int:
    """Parse `arguments` by the signature of `run` (tyro), then call it; `run` returns an exit code or None."""
    import tyro

    try:
        return tyro.cli(run, prog=f"pnnh {name}", args=arguments, config=(tyro.conf.FlagConversionOff,)) or 0
    except SystemExit as stop:  # tyro prints its own one-page message
        return int(stop.code or 0)
