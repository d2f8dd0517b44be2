"""What the commands share: arguments that mean the same everywhere, and one way to show tables and sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from pnnh.load import Loaded

LARGEST_SEED = 2**63 - 1

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
_SEVERAL = tyro.conf.arg(metavar="MODEL [MODEL ...]", help_behavior_hint="")
Models = Annotated[tuple[str, ...], tyro.conf.Positional, _SEVERAL]


def _optional(kind: Callable[[str], Any], metavar: str):
    """An option without a default; its help says in words what happens then."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, (int, float, str, Path)),
        str_from_instance=lambda value: [str(value)],
    )


def _listed(kind: Callable[[str], Any], metavar: str):
    """An option with several values: words, commas, or both, each value once."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="+",
        metavar=f"{metavar} [{metavar} ...]",
        instance_from_str=lambda words: tuple(dict.fromkeys(kind(p) for word in words for p in word.split(",") if p)),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [str(item) for item in value or ()],
    )


_SAID = tyro.conf.arg(help_behavior_hint="")  # no "(default: None)"
MaybeInt = Annotated[int | None, _optional(int, "N"), _SAID]
MaybeFloat = Annotated[float | None, _optional(float, "X"), _SAID]
MaybeText = Annotated[str | None, _optional(str, "NAME"), _SAID]
MaybePath = Annotated[Path | None, _optional(Path, "PATH"), _SAID]
MaybeInts = Annotated[tuple[int, ...] | None, _listed(int, "N"), _SAID]
Ints = Annotated[tuple[int, ...], _listed(int, "N")]
Names = Annotated[tuple[str, ...], _listed(str, "NAME")]


@dataclass(frozen=True)
class Net:
    """Which weights and sizes a named network has."""

    weights: MaybeText = None
    """A .safetensors file, a checkpoint folder, "pretrained" (timm's own) or "random"; default: a checkpoint's own."""
    image_size: MaybeInt = None
    """Side of the images, in pixels; default: the model's own."""
    trust: bool = False
    """Run the code that a checkpoint's record names (module:function)."""

    def open(self, name: str) -> Loaded:
        from pnnh.load import open_model

        return open_model(name, weights=self.weights, image_size=self.image_size, trust=self.trust)


@dataclass(frozen=True)
class Show:
    """How a command prints."""

    format: Literal["table", "markdown", "csv", "json"] = "table"
    """Of tables; with the last three, sentences go to standard error. json: one object a table, one on a line."""

    def table(self, rows: Iterable[Mapping[str, Any]], title: str = "") -> None:
        from pnnh import report

        rows = list(rows)
        if self.format == "table":
            from rich.console import Console

            Console().print(report.terminal(rows, title))
            return
        if self.format == "json":
            text = json.dumps(json.loads(report.json_text({"title": title, "rows": rows})), ensure_ascii=False) + "\n"
        else:
            text = report.markdown(rows) + "\n\n" if self.format == "markdown" else report.csv_text(rows)
        print(text, end="", flush=True)

    def say(self, sentence: str) -> None:
        from rich.console import Console
        from rich.text import Text

        from pnnh import report

        Console(stderr=self.format != "table").print(Text(report.printable(sentence)))

    def wrote(self, paths: Iterable[Path]) -> None:
        for path in paths:
            print(f"wrote {path}", file=sys.stdout if self.format == "table" else sys.stderr, flush=True)


def check_models(models: tuple[str, ...]) -> tuple[str, ...]:
    """`models`. Raises UsageError if none is named."""
    from pnnh._errors import UsageError

    if not models:
        raise UsageError("name at least one MODEL: a timm name, a checkpoint folder or module:function")
    return models


def check_seed(seed: int) -> int:
    """`seed`. Raises UsageError for one that not every generator takes."""
    from pnnh._errors import UsageError

    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed {seed} must be between 0 and 2^63 - 1")
    return seed


def noise(size: tuple[int, int, int], batch: int = 2):
    """`batch` images of noise, the same each time: [batch, C, H, W]."""
    import torch

    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(0))


def file_in(out: Path, name: str, *endings: str) -> Path:
    """The file that `--out` means: itself if it ends like `name` or in one of `endings`, else `name` in that folder.

    Raises UsageError for another ending that looks like a file's.
    """
    from pnnh._errors import UsageError

    usual = (Path(name).suffix, *endings)
    if out.suffix in usual:
        return out
    if out.suffix[1:].isalpha() and not out.is_dir():
        raise UsageError(f"--out {out} must be a folder or end in {' or '.join(usual)}")
    return out / name
