"""The record of a finished run: model, data, recipe, seed, every epoch, and where it all comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pnnh.provenance import environment

if TYPE_CHECKING:
    from pnnh.train.run import Run


def build(run: Run, *, spec: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The final record of a finished run, ready for JSON."""
    trainable = {id(p): p.numel() for p in run.model.parameters()}
    last = history[-1]
    seconds = sum(event["seconds"] for event in history)
    speeds = sorted(event["images_per_second"] for event in history)
    return {
        "model": spec | {"num_params": sum(trainable.values())},
        "data": run.data.to_dict() | {"mean": list(run.data.mean), "std": list(run.data.std)},
        "classes": list(run.data.classes),
        "recipe": run.recipe.to_dict(),
        "seed": run.seed,
        "execution": run.execution.to_dict() | {"processes": run.processes.size},
        "result": {
            "test_accuracy": last["test_accuracy"],
            "train_accuracy": last["train_accuracy"],
            "loss": last["loss"],
            "images_per_second": speeds[len(speeds) // 2],
            "seconds": seconds,
        },
        "epochs": history,
    } | environment(run.device)
