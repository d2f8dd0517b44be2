"""Plain layers: learner, coder and the stages that share it. No layer knows a network."""

from pnnh.layers.coder import Coder, CoderChoice, FrozenDirac, FrozenOrthogonal, LearnedCoder, PerLayerCoder
from pnnh.layers.conv import CoderConv, Learn, LearnerConv, PlainConv, Write
from pnnh.layers.stage import AlternatingStage, PipelinedStage, PlainOptions, PlainStage, Transition

__all__ = [
    "AlternatingStage",
    "Coder",
    "CoderChoice",
    "CoderConv",
    "FrozenDirac",
    "FrozenOrthogonal",
    "Learn",
    "LearnedCoder",
    "LearnerConv",
    "PerLayerCoder",
    "PipelinedStage",
    "PlainConv",
    "PlainOptions",
    "PlainStage",
    "Transition",
    "Write",
]
