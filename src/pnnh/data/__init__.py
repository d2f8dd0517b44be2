"""Image data: named sets, class folders, and large folders that stay on disk. Knows nothing of training."""

from pnnh.data.augment import Augment, ResizedCrop
from pnnh.data.load import load_data
from pnnh.data.types import Dataset, Images, Split, stratified

__all__ = ["Augment", "Dataset", "Images", "ResizedCrop", "Split", "load_data", "stratified"]
