"""The case of a seed, a kind and a number: the same one whenever and wherever it is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from tests.fuzz.cases import KINDS, Case

_FILES = {
    "arguments": "arguments",
    "config": "config_files",
    "prompts": "prompt_files",
    "models": "model_folders",
    "stores": "store_trees",
}


@cache
def _strategy(kind: str) -> st.SearchStrategy[Case]:
    found: st.SearchStrategy[Case] = import_module(f"tests.fuzz.{_FILES[kind]}").cases()
    return found


def drawn(kind: str, shard: int, number: int) -> Case:
    """One case, each drawn afresh: hypothesis would make every other one of the one before.

    Parameters
    ----------
    kind : str
        One of ``KINDS``.
    shard : int
        The seed.
    number : int
        Which of them.
    """
    found: list[Case] = []

    @seed((shard * len(KINDS) + KINDS.index(kind)) * 100_000 + number)
    @settings(
        max_examples=2,  # the first is always the simplest there is
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_strategy(kind))
    def collect(case: Case) -> None:
        found.append(case)

    with _same_everywhere():
        collect()
    return found[-1]


@contextlib.contextmanager
def _same_everywhere() -> Iterator[None]:
    """Without the constants that hypothesis takes from whatever modules happen to be loaded."""
    known: Any = providers
    name = "_get_local_constants"
    if not hasattr(known, name):
        yield
        return
    with mock.patch.object(known, name, return_value=known.Constants()):
        yield
