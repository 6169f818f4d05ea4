"""Old names that still work, with a warning, for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Say that something has a new name; `stacklevel` counts as if the caller warned."""
    warnings.warn(
        f"{old} is now {new}; the old name goes with the next version.",
        DeprecationWarning,
        stacklevel=stacklevel + 1,
    )


def renamed(
    module: str, names: str | Mapping[str, str], *, stacklevel: int = 2
) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that answers to old names.

    Parameters
    ----------
    module : str
        The module that the names were in.
    names : str or mapping
        Old name to ``module:name``; or the module that all of it is in now.
    stacklevel : int
        Frames from here to who asked for the name.
    """

    def find(name: str) -> Any:
        new = names.get(name) if not isinstance(names, str) else f"{names}:{name}"
        if new is None or name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        where, _, what = new.partition(":")
        found = getattr(import_module(where), what)
        warn_renamed(f"{module}.{name}", f"{where}.{what}", stacklevel=stacklevel)
        return found

    return find


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that takes keyword arguments by their old names, too.

    Parameters
    ----------
    **names : str
        Old name to new.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> R:
            for old, new in names.items():
                if old in given:
                    warn_renamed(f"argument {old} of {function.__name__}", new)
                    given.setdefault(new, given.pop(old))
            return function(*args, **given)

        return call

    return decorate
