"""Every public verb is a function with a real signature, type hints and a docstring that explains each argument."""

from __future__ import annotations

import inspect

import pytest

import pnnh

VERBS = [name for name in pnnh.__all__ if name.islower() and name not in ("__version__", "theory")]
OF_OTHERS = {"create_model"}  # timm's own


def verb(name: str):
    return getattr(pnnh, name)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_a_function_with_named_arguments(name):
    assert inspect.isfunction(verb(name))
    kinds = {parameter.kind for parameter in inspect.signature(verb(name)).parameters.values()}
    assert inspect.Parameter.VAR_POSITIONAL not in kinds


@pytest.mark.parametrize("name", [name for name in VERBS if name not in OF_OTHERS])
def test_a_verb_says_what_it_takes_and_gives(name):
    function = verb(name)
    parameters = inspect.signature(function).parameters
    assert function.__annotations__.keys() == {*parameters, "return"}, "a type hint is missing"
    text = inspect.getdoc(function) or ""
    assert len(text.splitlines()) > 1, "say more than one line"
    _, *others = parameters  # the first is what the sentence is about
    assert not [name for name in others if name not in text], "an argument is not explained"
