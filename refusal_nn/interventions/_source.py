"""What a function of the user's is: its name, its source, and what it refers to."""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from refusal_nn.errors import InterventionError

INSTALLED = frozenset({"torch", "numpy", "transformers", "nnsight"})
"""What every server has."""


def qualified(function: Any) -> str:
    """Module and name of a function."""
    return f"{function.__module__}.{function.__qualname__}"


def source_of(function: FunctionType) -> str:
    """The text of a function.

    Raises
    ------
    InterventionError
        If it cannot be found, as of one typed into the interpreter's prompt.
    """
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise InterventionError(
            f"FunctionIntervention: the source of {qualified(function)} cannot be read, and functions "
            "travel and are recorded by their source; define it in a file or a notebook cell."
        ) from error


def source_hash(function: FunctionType) -> str:
    """SHA-256 of the source of a function and of what it calls in the same package, as hex digits."""
    reached = {qualified(function): source_of(function)}
    for other in callees(function)[1:]:
        try:
            reached[qualified(other)] = source_of(other)
        except InterventionError:  # made by a program: its name stands for it
            reached[qualified(other)] = ""
    text = "\0".join(f"{name}\0{reached[name]}" for name in sorted(reached))
    return hashlib.sha256(text.encode()).hexdigest()


def callees(function: FunctionType) -> list[FunctionType]:
    """The function, and the functions of the same package that it can reach by name."""
    if top_level(function) in INSTALLED:
        return [function]
    found: list[FunctionType] = []
    left = [function]
    while left:
        one = left.pop()
        if one in found:
            continue
        found.append(one)
        left += [
            value
            for value in named_values(one)
            if isinstance(value, FunctionType) and top_level(value) == top_level(function)
        ]
    return found


def top_level(thing: Any) -> str:
    """Top-level name of the module that a function or class is from, or of a module itself."""
    name = getattr(thing, "__module__", None) or getattr(thing, "__name__", "")
    return str(name).split(".")[0]


def named_values(function: FunctionType) -> Iterator[Any]:
    """Values of the globals that a function's code names."""
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield function.__globals__[name]


def _names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found
