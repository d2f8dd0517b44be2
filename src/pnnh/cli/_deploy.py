"""What `pnnh export` writes for each target: the steps in order, each as a titled table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from pnnh._errors import UsageError
from pnnh.convert.fold import Form

CALIBRATION_IMAGES = 512
Table = tuple[str, list[dict]]


class Deployment:
    """One model, one folder. `data` names the data set, None if there is none; `form` is that of the fused net."""

    def __init__(
        self, model: nn.Module, shape: tuple[int, int, int], out: Path, name: str, data: str | None, form: Form
    ):
        self.model, self.shape, self.out, self.name, self.data_name = model, shape, out, name, data
        self.form: Form = form
        self.example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))

    @cached_property
    def data(self):
        if self.data_name is None:
            return None
        from pnnh.data import load_data

        data = load_data(self.data_name, image_size=self.shape[-1], channels=self.shape[0])
        with torch.no_grad():
            outputs = self.model(self.example).shape[-1]
        if outputs != data.num_classes:
            raise UsageError(f"{self.name} has {outputs} outputs, {data.name} has {data.num_classes} classes")
        return data

    def write(self, to: str) -> Iterator[Table]:
        """Write the files for target `to`; yields a titled table after each."""
        from pnnh.convert.write import export, fused_if_possible

        suffix = ".pt2" if to == "pt2" else ".onnx"
        path = self.out / f"{self.name}{suffix}"
        if to == "executorch":
            from pnnh.convert.edge import to_executorch

            self.out.mkdir(parents=True, exist_ok=True)
            net, _ = fused_if_possible(self.model, self.example, self.form)
            found = to_executorch(self.out / f"{self.name}.pte", net, self.example[:1])
            yield "executorch", [vars(found)]
            return
        facts = {"form": self.form, "labels": self._labels(), "preprocessing": self._steps()}
        yield to, export(self.model, self.example, path, **facts).rows()
        if to == "openvino":
            from pnnh.convert.edge import to_openvino

            yield "OpenVINO", [vars(to_openvino(path, self.out / f"{self.name}.xml", self.model, self.example))]
        if to == "int8":
            yield from self._int8(path)

    def _int8(self, path: Path) -> Iterator[Table]:
        from pnnh.convert import quantize
        from pnnh.data import stratified
        from pnnh.train.evaluate import Normalise

        normalise = Normalise(self.data, "cpu")
        chosen, _ = stratified(self.data.train.labels, min(CALIBRATION_IMAGES, len(self.data.train)), seed=0)
        test = ((normalise(images), labels) for images, labels in self.data.test.batches(256))
        done = quantize(path, path.with_suffix(".int8.onnx"), normalise(self.data.train.pixels(chosen)), test=test)
        worst = sorted(done.rows(), key=lambda row: row["sqnr_db"])[:5]
        yield "the five layers that int8 hurts most", worst
        yield f"int8 against float32 on {self.data.name}", done.files()

    def _labels(self) -> tuple[str, ...]:
        return self.data.classes if self.data is not None else ()

    def _steps(self) -> dict | None:
        if self.data is None:
            return None
        return {"scale": "1/255", "mean": self.data.mean, "std": self.data.std, "input_size": list(self.shape)}
