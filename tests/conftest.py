"""The scripts beside the records can be imported; tests that fork come first.

A process whose autograd has started its threads can no longer be forked.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "results" / "scripts"))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.module.__name__ != "test_train_processes")
