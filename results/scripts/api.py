"""Write docs/api.md: signature and docstring of every public name of the package.

python results/scripts/api.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pnnh
from pnnh import theory
from pnnh.report import write_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):\s*(.*)$")
LEAD = """# API reference

<!-- written by results/scripts/api.py: do not edit -->

Every name of `import pnnh`, from its docstring. Functions first, then the types that they take and return, then the
formulas of `pnnh.theory`. Parts of them are imported from their package: `from pnnh.train import SGD`."""


def signature(name: str, thing: object) -> str:
    """`name(parameters) -> result` on one line, or one parameter a line where that is long."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    returns = (
        "" if found.return_annotation is inspect.Signature.empty else f" -> {_annotation(found.return_annotation)}"
    )
    shown = [_parameter(parameter) for parameter in found.parameters.values()]
    stars = [index for index, p in enumerate(found.parameters.values()) if p.kind is p.KEYWORD_ONLY]
    if stars and not any(p.kind is p.VAR_POSITIONAL for p in found.parameters.values()):
        shown.insert(stars[0], "*")
    line = f"{name}({', '.join(shown)}){returns}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(shown) + f",\n){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    hint = "" if parameter.annotation is parameter.empty else f": {_annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return f"{star}{parameter.name}{hint}"
    default = re.sub(r"<(?:function|class) '?(<?[\w.]+>?).*", r"\1", repr(parameter.default)).replace("<lambda>", "...")
    return f"{star}{parameter.name}{hint}{' = ' if hint else '='}{default}"


def _annotation(hint: object) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def described(thing: object) -> str:
    """The docstring as Markdown: paragraphs, and a list for each of its sections."""
    lines, section = [], ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if found := SECTION.match(line):
            section = found[1]
            lines += ["", f"**{section}**" + (f": {found[2]}" if found[2] else ""), ""]
        elif section and (item := re.match(r"^ {4}(\*{0,2}[\w, *]+): (.*)$", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith(" "):
            lines.append(f"  {line.strip()}")
        else:
            section = "" if not line.strip() else section
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def entry(name: str, thing: object) -> str:
    return f"### {name}\n\n```text\n{signature(name, thing)}\n```\n\n{described(thing)}"


def rendered() -> str:
    things = {name: getattr(pnnh, name) for name in pnnh.__all__ if not name.startswith("__") and name != "theory"}
    kinds = {
        "Functions": {name: thing for name, thing in things.items() if not inspect.isclass(thing)},
        "Types": {name: thing for name, thing in things.items() if inspect.isclass(thing)},
        "pnnh.theory": {
            name: thing
            for name, thing in vars(theory).items()
            if inspect.isfunction(thing) and not name.startswith("_") and thing.__module__ == theory.__name__
        },
    }
    parts = [
        f"## {title}\n\n" + "\n\n".join(entry(*item) for item in sorted(some.items())) for title, some in kinds.items()
    ]
    return "\n\n".join([LEAD, *parts]) + "\n"


if __name__ == "__main__":
    write_text(PAGE, rendered())
