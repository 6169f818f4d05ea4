"""The functions that kept one analysis each as a run, as :func:`record` does now; for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from refusal_nn.runs._keeping import Keeping
from refusal_nn.runs._record import record
from refusal_nn.store import Run


def old_run(name: str, function: Callable[..., Any], *arguments: str) -> Callable[..., Run]:
    """A function that is called as ``name`` was.

    Parameters
    ----------
    name : str
    function : callable
        The analysis.
    *arguments : str
        What its positional arguments are, the place to keep the run, which comes last, left out.
    """

    def run(*args: Any, keeping: Keeping | None = None, inputs: Any = (), **options: Any) -> Run:
        warnings.warn(
            f"{name} is now refusal_nn.record({function.__name__}, ..., keep=keeping); the old name goes "
            "with the next version.",
            DeprecationWarning,
            stacklevel=2,
        )
        *given, last = args if keeping is None else (*args, keeping)
        values = dict(zip(arguments, given, strict=False))
        return record(function, keep=last, made_from=inputs, **values, **options)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"Old form of :func:`refusal_nn.record` with ``{function.__name__}``."
    return run
