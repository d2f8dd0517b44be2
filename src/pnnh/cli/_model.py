"""`load_weights` under the name that scripts outside this package know."""

from pnnh.load import load_weights

__all__ = ["load_weights"]
