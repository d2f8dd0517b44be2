"""Convolutional nets of a stem, stages and a classifier, with timm's Model API; subclasses build the stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from pnnh.layers import AlternatingStage, NormHead, PlainOptions, PlainStage


class StagedNet(nn.Module):
    """A stem and `len(widths)` stages of `num_layers` layers; all but the first halve the resolution.

    Input [B, in_chans, H, W] with H, W >= `min_size`; output [B, num_classes], or the last stage's features
    [B, widths[-1], H / r, W / r], r = `stem_reduction` 2^(number of stages - 1).

    head_norm: the norm between the last stage and the pooling, built with a number of channels; False: no such norm
        (timm drops arguments that are None).
    """

    min_size = 8
    stem_reduction = 1  # of stem and pool together
    stem_is_feature = False  # whether the stem's output, before the pool, is the first entry of `feature_info`

    def __init__(
        self,
        widths: tuple[int, ...],
        num_layers: tuple[int, ...],
        *,
        stem_width: int | None = None,
        head_norm: Callable[[int], nn.Module] | Literal[False] = nn.BatchNorm2d,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.depth = sum(num_layers) + 2  # with stem and classifier
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.grad_checkpointing = False
        before = stem_width or widths[0]
        self.stem, self.pool = self.first_layer(in_chans, before), self.first_pool()
        self.feature_info = [{"num_chs": before, "reduction": 2, "module": "stem"}] if self.stem_is_feature else []
        self.stages = nn.Sequential()
        for index, (width, count) in enumerate(zip(widths, num_layers, strict=True)):
            self.stages.append(self.stage(before, width, count, stride=1 if index == 0 else 2))
            reduction = self.stem_reduction * 2**index
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{index}"})
            before = width
        self.num_features = self.head_hidden_size = before
        pooling = {"pool_type": global_pool, "drop_rate": drop_rate}
        if not head_norm:
            self.head = ClassifierHead(before, num_classes, **pooling)
        else:
            self.head = NormHead(before, num_classes, norm=head_norm, **pooling)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        raise NotImplementedError

    def first_pool(self) -> nn.Module:
        """The layer between stem and stages."""
        return nn.Identity()

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} px are too small: both sides must be at least {self.min_size}"
            )
        x = self.pool(self.stem(x))
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.stages, x)
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """timm's: the final features and those of `feature_info` in `indices` (last n if int, all if None)."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} must be 'NCHW'")
        first = int(self.stem_is_feature)
        wanted, last = feature_take_indices(first + len(self.stages), indices)
        x = self.stem(x)
        intermediates = [x] if first and 0 in wanted else []
        x = self.pool(x)
        for index, stage in enumerate(self.stages[: last + 1 - first] if stop_early else self.stages, start=first):
            x = stage(x)
            if index in wanted:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's: keep the stages up to the last of `indices`, drop the classifier if `prune_head`.

        A classifier and its norm belong to the last stage and go with it.
        """
        first = int(self.stem_is_feature)
        wanted, last = feature_take_indices(first + len(self.stages), indices)
        shorter = last + 1 < len(self.feature_info)
        self.stages = self.stages[: last + 1 - first]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if isinstance(self.head, NormHead) and (prune_norm or shorter):
            self.head.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(?:[a-z]+\.)*(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The shared kernels: each receives the sum of its layers' gradients and is not decayed."""
        return shared_kernels(self)


def shared_kernels(net: nn.Module) -> set[str]:
    """Names of the parameters whose module has a learning rate scale of its own (`lr_scale`), as a coder has."""
    owners = {path for path, module in net.named_modules() if hasattr(module, "lr_scale")}
    return {name for name, _ in net.named_parameters() if name.rpartition(".")[0] in owners}


def params_on_meta(build: Callable[[], nn.Module]) -> int:
    """Number of parameters of the net that `build` makes, without making its weights."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


class PnnhNet(StagedNet):
    """A net of plain stages: each layer has its own learner, the layers of a stage share a coder.

    Combine it with a class that knows the sizes, which gets the positional and all further arguments.

    learner_ratio: the learner's width as a share of the stream's. form: the type of the stages.
    options: what the layers are made of.
    """

    def __init__(
        self,
        *sizes,
        learner_ratio: float,
        form: type[PlainStage] = AlternatingStage,
        options: PlainOptions | None = None,
        **kwargs,
    ):
        if learner_ratio <= 0:
            raise ValueError(f"learner_ratio {learner_ratio} must be above 0: without a learner nothing is learned")
        self.learner_ratio, self.form, self.options = learner_ratio, form, options or PlainOptions()
        super().__init__(*sizes, **{"head_norm": self.options.norm} | kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        learner = max(1, round(self.learner_ratio * out_chans))
        return self.form(in_chans, out_chans, learner, num_layers, stride=stride, options=self.options)
