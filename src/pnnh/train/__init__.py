"""Data, recipes and one training loop over any `nn.Module`."""

from pnnh import checkpoint
from pnnh._files import check_writable
from pnnh.checkpoint import Checkpoint
from pnnh.data import Augment, Dataset, ResizedCrop, Split, load_data
from pnnh.train.evaluate import Evaluation, Normalise, evaluate
from pnnh.train.execution import DDP, FSDP2, Execution
from pnnh.train.finite import NotFinite
from pnnh.train.groups import param_groups
from pnnh.train.loop import Epoch, Stopped, check_fit, pick_device, train
from pnnh.train.loss import BinaryCrossEntropy, CrossEntropy
from pnnh.train.mixing import Mixing
from pnnh.train.processes import join
from pnnh.train.recipe import SGD, AdamW, Cosine, Lamb, Muon, OneCycle, Recipe
from pnnh.train.stopping import STOPPED_EXIT_CODE, StopOnSignal

__all__ = [
    "DDP",
    "FSDP2",
    "SGD",
    "STOPPED_EXIT_CODE",
    "AdamW",
    "Augment",
    "BinaryCrossEntropy",
    "Checkpoint",
    "Cosine",
    "CrossEntropy",
    "Dataset",
    "Epoch",
    "Evaluation",
    "Execution",
    "Lamb",
    "Mixing",
    "Muon",
    "Normalise",
    "NotFinite",
    "OneCycle",
    "Recipe",
    "ResizedCrop",
    "Split",
    "StopOnSignal",
    "Stopped",
    "check_fit",
    "check_writable",
    "checkpoint",
    "evaluate",
    "join",
    "load_data",
    "param_groups",
    "pick_device",
    "train",
]
