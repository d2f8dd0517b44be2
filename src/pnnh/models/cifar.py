"""The CIFAR family of He et al. 2015, section 4.2: stem, three stages of 2n layers, pooling, classifier; depth 6n + 2.

Three nets, one skeleton; they differ in what a stage is:

    PnnhResNet   plain layers with a shared coder        no residual connection
    PlainResNet  conv-norm-relu                          no residual connection, no coder
    CifarResNet  residual blocks, option-A shortcuts
"""

from __future__ import annotations

import torch
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn

from pnnh.layers import AlternatingStage, PlainOptions, PlainStage
from pnnh.models.baselines import ChainStage, ConvNormAct, ResidualStage

WIDTHS = (16, 32, 64)


def learner_share(depth: int) -> float:
    """The learner's width as a share of the stream's: all of it, or 15/16 where stages are too short to spread the rest.

    Chosen: at most 0.56 of the residual twin's parameters at every depth from 20 on.
    """
    return 1.0 if depth >= 26 else 0.9375


def layers_per_stage(depth: int) -> int:
    """2n for depth = 6n + 2 (the stem and the classifier are the 2). Raises ValueError for any other depth."""
    if depth < 8 or (depth - 2) % 6:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise ValueError(f"depth {depth} must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...); the nearest is {near}")
    return (depth - 2) // 3


class CifarNet(nn.Module):
    """Stem, stages, head, with timm's Model API. Subclasses say what a stage is.

    Input [B, in_chans, H, W] with H, W >= 8; output [B, num_classes], or [B, 4 w, H / 4, W / 4] features.
    """

    min_size = 8

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, int, int] = WIDTHS,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.depth, self.num_classes, self.in_chans, self.drop_rate = depth, num_classes, in_chans, drop_rate
        self.grad_checkpointing = False
        num_layers = layers_per_stage(depth)
        self.stem = self.first_layer(in_chans, widths[0])
        self.stages = nn.Sequential()
        for index, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            self.stages.append(self.stage(before, width, num_layers, stride=1 if index == 0 else 2))
        self.feature_info = [
            {"num_chs": width, "reduction": 2**index, "module": f"stages.{index}"} for index, width in enumerate(widths)
        ]
        self.num_features = self.head_hidden_size = widths[-1]
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def first_layer(self, in_chans: int, out_chans: int) -> nn.Module:
        return ConvNormAct(in_chans, out_chans)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.min_size:
            raise ValueError(
                f"images of {tuple(x.shape[-2:])} px are too small: both sides must be at least {self.min_size}"
            )
        x = self.stem(x)
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
        """timm's: the final features and the outputs of the stages in `indices` (last n if int, all if None)."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} must be 'NCHW'")
        wanted, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if index in wanted:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """timm's: keep the stages up to the last of `indices`, drop the classifier if `prune_head`."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or last + 1 < len(self.feature_info):
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
        """The coder kernels: they receive the sum of a stage's gradients and are not decayed."""
        owners = {path for path, module in self.named_modules() if hasattr(module, "lr_scale")}
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[0] in owners}


class PlainResNet(CifarNet):
    """The plain twin: the same convolutions in a bare chain."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ChainStage(in_chans, out_chans, num_layers, stride=stride)


class CifarResNet(CifarNet):
    """The residual twin, option A: shortcuts without parameters."""

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        return ResidualStage(in_chans, out_chans, num_layers, stride=stride)


class PnnhResNet(CifarNet):
    """The PNNH net: plain layers, a learner of its own per layer, a coder shared by the layers of a stage.

    The stream is as wide as the residual twin; `learner_ratio` is the learner's share of it (None: `learner_share`).
    """

    def __init__(
        self,
        depth: int = 20,
        widths: tuple[int, int, int] = WIDTHS,
        *,
        learner_ratio: float | None = None,
        form: type[PlainStage] = AlternatingStage,
        options: PlainOptions | None = None,
        **kwargs,
    ):
        learner_ratio = learner_share(depth) if learner_ratio is None else learner_ratio
        if learner_ratio <= 0:
            raise ValueError(f"learner_ratio {learner_ratio} must be above 0: without a learner nothing is learned")
        self.learner_ratio, self.form, self.options = learner_ratio, form, options or PlainOptions()
        super().__init__(depth, widths, **kwargs)

    def stage(self, in_chans: int, out_chans: int, num_layers: int, *, stride: int) -> nn.Module:
        learner = max(1, round(self.learner_ratio * out_chans))
        return self.form(in_chans, out_chans, learner, num_layers, stride=stride, options=self.options)
