"""Comparisons: several methods, depths and seeds trained on the same data under the same recipe."""

from pnnh.compare.cells import Observer, run, run_cell, survival
from pnnh.compare.compare import compare
from pnnh.compare.comparison import Cell, Comparison
from pnnh.compare.methods import CNN_METHODS, VIT_METHODS, Cnn, Imagenet, Method, Vit, rate_for
from pnnh.compare.recipes import CNN_RECIPES, VIT_RECIPES, recipe_for
from pnnh.compare.results import Results, summary

__all__ = [
    "CNN_METHODS",
    "CNN_RECIPES",
    "VIT_METHODS",
    "VIT_RECIPES",
    "Cell",
    "Cnn",
    "Comparison",
    "Imagenet",
    "Method",
    "Observer",
    "Results",
    "Vit",
    "compare",
    "rate_for",
    "recipe_for",
    "run",
    "run_cell",
    "summary",
    "survival",
]
