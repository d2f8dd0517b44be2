"""A model card: what a checkpoint's record says, as Markdown with the Hub's header."""

from __future__ import annotations

import json
from typing import Any


def model_card(record: dict[str, Any]) -> str:
    """Results, recipe, data, use and limits of a trained model; every figure is the record's."""
    parts = [_header(record), _result(record), _use(), _recipe(record), _data(record), _limits(record)]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _header(record: dict[str, Any]) -> str:
    name = record["model"]["name"]
    size = f"{record['model']['num_params']:,} parameters" if "num_params" in record["model"] else "a network"
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, pnnh]
license: apache-2.0
---

# {name}

`{name}` of pnnh (deep networks without residual connections, after [arXiv 2402.08645](https://arxiv.org/abs/2402.08645)),
{size} in the training form, trained on {_data_name(record)}."""


def _result(record: dict[str, Any]) -> str:
    found = record.get("result") or {}
    data = record.get("data") or {}
    rows = [
        ("test accuracy", _percent(found.get("test_accuracy"))),
        ("accuracy while training, on augmented images", _percent(found.get("train_accuracy"))),
        ("training loss of the last epoch", _number(found.get("loss"))),
        ("test images", f"{data['num_test']:,}" if "num_test" in data else None),
        ("seed", record.get("seed")),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows if value is not None]
    if not lines:
        return "## Result\n\nThe record holds no result."
    return "\n".join(
        ["## Result", "", "| figure | value |", "|---|---|", *lines, "", "One seed: one run of one recipe."]
    )


def _use() -> str:
    return """## Use

```sh
pip install pnnh
```

```python
import timm
import pnnh.models  # its names join timm's

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or local-dir:PATH
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```"""


def _recipe(record: dict[str, Any]) -> str:
    if "recipe" not in record:
        return ""
    lines = [f"- {name}: {_plain(value)}" for name, value in record["recipe"].items()]
    device = record.get("device", {}).get("name")
    ending = (
        [f"\nTrained with `{record['command']}`" + (f" on {device}." if device else ".")] if "command" in record else []
    )
    return "\n".join(["## Recipe", "", *lines, *ending])


def _data(record: dict[str, Any]) -> str:
    data = record.get("data")
    if not data:
        return ""
    side = data["image_size"]
    lines = [
        f"{_data_name(record)}: {data['num_train']:,} images to train, {data['num_test']:,} to test, "
        f"{data['num_classes']} classes, {data['channels']} channel(s), {side} x {side} pixels.",
        *data.get("notes", ()),
    ]
    return "\n\n".join(["## Data", *lines])


def _limits(record: dict[str, Any]) -> str:
    return f"""## Limits

- It tells the classes of {_data_name(record)} apart and nothing else; images of another kind get one of them too.
- Tested on that data set's own test images only: not for robustness, fairness or calibration.
- Every figure above is from the record of this one run; see `record.json`."""


def _data_name(record: dict[str, Any]) -> str:
    return (record.get("data") or {}).get("name", "data that its record does not name")


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f} %"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        kind, rest = value.get("type", ""), {name: item for name, item in value.items() if name != "type"}
        return f"{kind}({', '.join(f'{name} {item}' for name, item in rest.items())})"
    return value if isinstance(value, str) else json.dumps(value)
