"""Plain layers (a learner that learns, a coder that writes into the stream) and the stages and blocks made of them."""

from pnnh.layers.attention import PlainAttention
from pnnh.layers.block import BlockOptions, PlainBlock, block_coders
from pnnh.layers.coder import Coder, CoderChoice, FrozenDirac, FrozenOrthogonal, LearnedCoder, PerLayerCoder
from pnnh.layers.conv import CoderConv, Deepen, Learn, LearnerConv, PlainConv, Write
from pnnh.layers.head import NormHead
from pnnh.layers.mlp import PlainMlp
from pnnh.layers.skipless import CuttingTheSkip
from pnnh.layers.stage import AlternatingStage, PipelinedStage, PlainOptions, PlainStage, Transition

__all__ = [
    "AlternatingStage",
    "BlockOptions",
    "Coder",
    "CoderChoice",
    "CoderConv",
    "CuttingTheSkip",
    "Deepen",
    "FrozenDirac",
    "FrozenOrthogonal",
    "Learn",
    "LearnedCoder",
    "LearnerConv",
    "NormHead",
    "PerLayerCoder",
    "PipelinedStage",
    "PlainAttention",
    "PlainBlock",
    "PlainConv",
    "PlainMlp",
    "PlainOptions",
    "PlainStage",
    "Transition",
    "Write",
    "block_coders",
]
