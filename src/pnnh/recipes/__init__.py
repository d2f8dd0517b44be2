"""Where model, data and training meet: the comparisons behind the published numbers."""

from pnnh.recipes.comparison import METHODS, Cell, Comparison, build, run_cell, summary, survival
from pnnh.recipes.fitted import recipe_for
from pnnh.recipes.named import RECIPES
from pnnh.recipes.parallel import run
from pnnh.recipes.transformers import TransformerComparison, transformer_recipe

__all__ = [
    "METHODS",
    "RECIPES",
    "Cell",
    "Comparison",
    "TransformerComparison",
    "build",
    "recipe_for",
    "run",
    "run_cell",
    "summary",
    "survival",
    "transformer_recipe",
]
