"""Depth, parameters and MACs of every registered net: src/pnnh/models/sizes.csv, which `pnnh models` shows.

python results/scripts/model_sizes.py
"""

from __future__ import annotations

from pathlib import Path

from pnnh.cli.models import counted
from pnnh.models.registry import MODELS
from pnnh.report import csv_text, write_text

TABLE = Path(__file__).resolve().parents[2] / "src" / "pnnh" / "models" / "sizes.csv"

if __name__ == "__main__":
    write_text(TABLE, csv_text([counted(name) for name in MODELS]))
