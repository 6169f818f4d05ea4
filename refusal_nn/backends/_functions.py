"""Whether a job can travel, asked before the first one of a model is sent."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from cloudpickle.cloudpickle import (  # type: ignore[import-untyped]
    list_registry_pickle_by_value,
)

from refusal_nn.errors import PreflightError
from refusal_nn.interventions._source import INSTALLED, callees, named_values, qualified
from refusal_nn.models import Model
from refusal_nn.shipped.plans import leaves
from refusal_nn.tracing import Request

if TYPE_CHECKING:
    from refusal_nn.backends._elsewhere import Elsewhere

_checked: weakref.WeakKeyDictionary[Model, set[FunctionType]] = weakref.WeakKeyDictionary()


def check_job(there: Elsewhere, model: Model, requests: Iterable[Request], block: bytes) -> None:
    """Check the user's functions that requests call, and that the job can be read elsewhere.

    Functions are checked once a model, and the job where it is the model's first in this process or
    holds new functions.

    Parameters
    ----------
    there : Elsewhere
        Where the job will run.
    model : Model
    requests : iterable of Request
    block : bytes
        The serialised job.

    Raises
    ------
    PreflightError
        If a function, or what it names, is of a package that neither travels nor is there, or the job
        cannot be read.
    """
    checked = _checked.get(model, set())
    named = [value for request in requests for value in leaves(request.plan)]
    found = {value for value in named if isinstance(value, FunctionType)} - checked
    for function in sorted(found, key=qualified):
        if any(isinstance(v, Model) for one in callees(function) for v in named_values(one)):
            raise PreflightError(
                f"function {qualified(function)} refers to a loaded model, which does not travel; pass "
                "what it needs of it in args."
            )
        lacking = sorted(there.lacking(*_not_travelling(function)))
        if lacking:
            raise PreflightError(
                f"function {qualified(function)} refers to {', '.join(lacking)}, which would have to be "
                f"installed on the server; call nnsight.register({lacking[0].split('.')[0]!r}) first to "
                "send its functions by their source, or pass values in args instead."
            )
    if found or model not in _checked:
        there.preflight(model, block)
    _checked[model] = checked | found


def _not_travelling(function: FunctionType) -> tuple[set[str], set[str]]:
    """Modules that do not travel: those a function's code is from, and those it names."""
    reached = callees(function)
    own = {one.__module__ for one in reached}
    named = {_module_of(value) for one in reached for value in named_values(one)} - {""}
    return {n for n in own if not _travels(n)}, {n for n in named if not _travels(n)}


def _module_of(value: Any) -> str:
    """The name of a module, or of the one that a class or function is from."""
    name = getattr(value, "__module__", None) if callable(value) else None
    if isinstance(value, ModuleType):
        name = value.__name__
    return name if isinstance(name, str) else ""


def _travels(module: str) -> bool:
    """Whether a module is everywhere, or its functions are sent by their source."""
    parts = module.split(".")
    if parts[0] in INSTALLED or parts[0] in sys.stdlib_module_names or parts[0] == "__main__":
        return True
    by_value = list_registry_pickle_by_value()
    return any(".".join(parts[:n]) in by_value for n in range(1, len(parts) + 1))
