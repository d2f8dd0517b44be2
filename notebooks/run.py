"""Run the code cells of notebooks in order and write their outputs into the files.

    python notebooks/run.py notebooks/*.ipynb

Only printed text, the text of a cell's last expression and its HTML are kept, so the files stay small; no Jupyter is
needed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
import types
from pathlib import Path
from typing import Any


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, space: dict[str, Any], name: str) -> list[dict]:
    """Run one cell in the namespace `space`; its outputs in the notebook format."""
    tree, text = ast.parse(source), io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(text):
        exec(compile(tree, name, "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), space)
    outputs = [{"output_type": "stream", "name": "stdout", "text": text.getvalue()}] if text.getvalue() else []
    if value is not None:
        data = {"text/plain": repr(value)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_()
        outputs.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return outputs


def run(path: Path, *, write: bool = True) -> dict:
    """Run a notebook, with a stand-in for IPython's HTML where that is not installed."""
    notebook = json.loads(path.read_text())
    _stand_in()
    space: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(code_cells(notebook), 1):
        cell["outputs"] = run_cell("".join(cell["source"]), space, f"{path.name}, cell {number}")
        cell["execution_count"] = number
    if write:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    return notebook


def _stand_in() -> None:
    try:
        import IPython.display  # noqa: F401
    except ImportError:
        display = types.ModuleType("IPython.display")
        display.HTML = _Html
        package = types.ModuleType("IPython")
        package.version_info, package.get_ipython = (9, 0), lambda: None  # matplotlib asks
        package.display = display
        sys.modules |= {"IPython": package, "IPython.display": display}


class _Html:
    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "<IPython.core.display.HTML object>"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
