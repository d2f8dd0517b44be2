"""Training of any `nn.Module` on images: recipes, one loop, evaluation, and runs that go on where they stopped."""

from pnnh import checkpoint
from pnnh._files import check_writable
from pnnh.checkpoint import Checkpoint
from pnnh.data import Augment, Dataset, ResizedCrop, Split, load_data
from pnnh.train.choices import (
    SGD,
    AdamW,
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    Lamb,
    Linear,
    Mixing,
    Muon,
    OneCycle,
)
from pnnh.train.evaluate import Evaluation, Normalise, evaluate, wilson
from pnnh.train.execution import Execution
from pnnh.train.finite import NotFinite
from pnnh.train.groups import param_groups
from pnnh.train.loop import Epoch, Progress, Stopped, check_fit, pick_device, train
from pnnh.train.processes import join
from pnnh.train.recipe import Recipe
from pnnh.train.stopping import STOPPED_EXIT_CODE, StopOnSignal

__all__ = [
    "SGD", "STOPPED_EXIT_CODE", "AdamW", "Augment", "BinaryCrossEntropy", "Checkpoint", "Cosine", "CrossEntropy",
    "Dataset", "Epoch", "Evaluation", "Execution", "Lamb", "Linear", "Mixing", "Muon", "Normalise", "NotFinite",
    "OneCycle", "Progress", "Recipe", "ResizedCrop", "Split", "StopOnSignal", "Stopped", "check_fit",
    "check_writable", "checkpoint", "evaluate", "join", "load_data", "param_groups", "pick_device", "train", "wilson",
]  # fmt: skip
