"""The record of a finished run: model, data, recipe, seed, every epoch, and where it all comes from."""

from __future__ import annotations

import statistics
from typing import Any

from pnnh.provenance import environment
from pnnh.train.evaluate import wilson
from pnnh.train.run import Run


def build(run: Run, *, spec: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of a finished run, ready for JSON; `history` holds its epochs as dicts.

    "result" is of the last epoch: accuracies in [0, 1], with the number of test images, the accuracy of always
    answering their most frequent class (chance) and the 95 % Wilson interval.
    """
    last, seen = history[-1], ("test_accuracy", "test_images", "chance", "train_accuracy", "loss")
    measured = last["test_accuracy"] is not None
    return {
        "model": spec | {"num_params": sum(p.numel() for p in run.model.parameters())},
        "data": run.data.to_dict() | {"mean": list(run.data.mean), "std": list(run.data.std)},
        "classes": list(run.data.classes),
        "recipe": run.recipe.to_dict(),
        "seed": run.seed,
        "execution": run.execution.to_dict() | {"processes": run.processes.size},
        "result": {name: last[name] for name in seen}
        | {
            "interval": wilson(last["test_accuracy"], last["test_images"]) if measured else None,
            "norms_recomputed": run.recomputes_norms,
            "images_per_second": statistics.median(event["images_per_second"] for event in history),
            "seconds": sum(event["seconds"] for event in history),
        },
        "epochs": history,
    } | environment(run.device)
