"""The functions that kept one analysis each as a run, as :func:`record` does now; for one version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refusal_nn._renamed import warn_renamed
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
        right = len(args) == len(arguments) + 1 if keeping is None else len(args) <= len(arguments)
        if not right:
            raise TypeError(
                f"{name}() takes {', '.join(arguments)} and keeping by position, or keeping by name, "
                f"but {len(args)} arguments were given by position."
            )
        warn_renamed(name, f"refusal_nn.record({function.__name__}, ..., keep=keeping)")
        kept = args[-1] if keeping is None else keeping
        values = dict(zip(arguments, args, strict=False))  # the rest of them are options
        return record(function, keep=kept, made_from=inputs, **values, **options)

    run.__name__ = run.__qualname__ = name
    run.__doc__ = f"Old form of :func:`refusal_nn.record` with ``{function.__name__}``."
    return run
