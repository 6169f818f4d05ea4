"""Functions of the user's in a plan: whether they can travel, asked before anything is sent."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping
from importlib import metadata
from types import FunctionType, ModuleType
from typing import Any

from cloudpickle.cloudpickle import (  # type: ignore[import-untyped]
    list_registry_pickle_by_value,
)

from refusal_nn.backends._dry_run import Preflight
from refusal_nn.errors import PreflightError
from refusal_nn.interventions._source import INSTALLED, callees, named_values, qualified
from refusal_nn.models import Model
from refusal_nn.tracing._request import Request

_checked: weakref.WeakKeyDictionary[Model, set[FunctionType]] = weakref.WeakKeyDictionary()


def check_functions(model: Model, requests: Iterable[Request], blob: bytes | None = None) -> None:
    """Check the user's functions that requests call, each once a model.

    Parameters
    ----------
    model : Model
    requests : iterable of Request
    blob : bytes, optional
        The serialised job, to be read in a process without this package; not where the job is run in
        such a process anyway.

    Raises
    ------
    PreflightError
        If a function, or what it names, is of a package that neither travels nor is on the server, or
        the job cannot be read.
    """
    checked = _checked.setdefault(model, set())
    found = {f for request in requests for f in _called(request.plan)} - checked
    for function in sorted(found, key=qualified):
        if any(isinstance(v, Model) for one in callees(function) for v in named_values(one)):
            raise PreflightError(
                f"function {qualified(function)} refers to a loaded model, which does not travel; pass "
                "what it needs of it in args."
            )
        lacking = _lacking(model, function)
        if lacking:
            raise PreflightError(
                f"function {qualified(function)} refers to {', '.join(lacking)}, which would have to be "
                f"installed on the server; call nnsight.register({lacking[0].split('.')[0]!r}) first to "
                "send its functions by their source, or pass values in args instead."
            )
    if found and blob is not None:
        Preflight(model).check(blob)
    checked |= found


def _called(plan: Mapping[str, Any]) -> Iterable[FunctionType]:
    for visit in plan["visits"]:
        for view in visit["views"]:
            for name, args in view["ops"]:
                if name == "call":
                    yield args["function"]


def _lacking(model: Model, function: FunctionType) -> list[str]:
    """Modules that a function needs and that neither travel nor are on a server."""
    own: set[str] = set()
    named: set[str] = set()
    for one in callees(function):
        own.add(one.__module__)
        for value in named_values(one):
            name = value.__name__ if isinstance(value, ModuleType) else _module_of(value)
            if name:
                named.add(name)
    lacking = {name for name in own if not _travels(name)}
    if model.remote is not None:  # in a dry run what is imported is found there or not
        lacking |= {name for name in named if not _travels(name)}
        if lacking:
            lacking = {name for name in lacking if not _installed(model, name)}
    return sorted(lacking)


def _module_of(value: Any) -> str:
    if not isinstance(value, type) and not callable(value):
        return ""
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _travels(module: str) -> bool:
    """Whether a module is everywhere, or its functions are sent by their source."""
    parts = module.split(".")
    if parts[0] in INSTALLED or parts[0] in sys.stdlib_module_names or parts[0] == "__main__":
        return True
    by_value = list_registry_pickle_by_value()
    return any(".".join(parts[:n]) in by_value for n in range(1, len(parts) + 1))


def _installed(model: Model, module: str) -> bool:
    """Whether the server says that it has a module's package."""
    assert model.remote is not None
    top = module.split(".")[0]
    names = {top, *metadata.packages_distributions().get(top, ())}
    there = {name.lower() for name in model.remote.service.environment()}
    return any(name.lower() in there for name in names)
