"""Tests that fork come first: a process whose autograd has started its threads can no longer be forked."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.module.__name__ != "test_train_processes")
