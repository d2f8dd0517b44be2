"""Plain layers: learner, coder and the stages that share it. No layer knows a network."""

from pnnh.layers.coder import Coder, CoderChoice, FrozenDirac, FrozenOrthogonal, LearnedCoder, PerLayerCoder
from pnnh.layers.conv import CoderConv, Learn, LearnerConv, LearnWrite, Write
from pnnh.layers.stage import Alternating, AlternatingStage, Form, Pipelined, PipelinedStage, PlainOptions, Transition

__all__ = [
    "Alternating",
    "AlternatingStage",
    "Coder",
    "CoderChoice",
    "CoderConv",
    "Form",
    "FrozenDirac",
    "FrozenOrthogonal",
    "Learn",
    "LearnWrite",
    "LearnedCoder",
    "LearnerConv",
    "PerLayerCoder",
    "Pipelined",
    "PipelinedStage",
    "PlainOptions",
    "Transition",
    "Write",
]
