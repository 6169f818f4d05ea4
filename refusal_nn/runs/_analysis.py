"""What an analysis is: declared once, on the function that does it.

Everything else is read off the declaration and the function's signature: how it is recorded as a run,
what its command looks like, which runs it goes on from, where a report shows it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import xarray as xr

from refusal_nn.errors import RequestError

F = TypeVar("F", bound=Callable[..., Any])

SPEED = ("batch_size",)
"""Arguments that decide how fast, and in how much memory, but not what: not in the fingerprint."""


@dataclass(frozen=True)
class Analysis:
    """An analysis as it was declared.

    Attributes
    ----------
    name : str
        ``noun-verb``; ``{level}`` in it stands for the value of that argument.
    function : callable
    version : int
        Raised when what it stores changes its meaning, so that its old runs are not taken for new
        ones. Other analyses' runs stay.
    runs : dict of str to tuple of str
        Arguments that are results of other analyses, and of which ones.
    new : dict of str to str
        Arguments that are prompts and must not have been used before, and what those before them were
        used for.
    keep : tuple of str
        Stages that stay in the run as groups.
    section : str
        ``module:function`` that makes its part of a report; empty if it has none.
    interventions : callable or None
        Given the arguments, the interventions to record.
    """

    name: str
    function: Callable[..., Any]
    version: int = 1
    runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    new: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    section: str = ""
    interventions: Callable[[Mapping[str, Any]], Sequence[Any]] | None = None

    @property
    def signature(self) -> inspect.Signature:
        """Of the function."""
        return inspect.signature(self.function)

    def named(self, arguments: Mapping[str, Any]) -> str:
        """The name under the given arguments."""
        return self.name.format_map(arguments)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument by name, defaults included, the recorder left out.

        Raises
        ------
        RequestError
            If the arguments are not the function's.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise RequestError(f"{self.name}: {error}.") from error
        bound.apply_defaults()
        return {k: v for k, v in bound.arguments.items() if k != "recorder"}

    def wants_tree(self, argument: str) -> bool:
        """Whether the function takes a result with all its groups there, not one table."""
        return "DataTree" in str(self.signature.parameters[argument].annotation)


def analysis(
    name: str,
    *,
    version: int = 1,
    runs: Mapping[str, str | tuple[str, ...]] | None = None,
    new: Mapping[str, str] | None = None,
    splits: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    section: str = "",
    interventions: Callable[[Mapping[str, Any]], Sequence[Any]] | None = None,
) -> Callable[[F], F]:
    """Declare the decorated function as an analysis; see :class:`Analysis` for the parameters.

    What the function returns says which analysis it is, in attr ``analysis``. The command line reads
    the declaration without importing it, so everything but ``interventions`` is written as literals.

    Parameters
    ----------
    splits : mapping, optional
        For the command: which split of the prompts an argument takes unless ``--split`` says another.

    Examples
    --------
    >>> import xarray as xr
    >>> from refusal_nn.runs import analysis
    >>> @analysis("toy-double")
    ... def double(scores: xr.Dataset, *, times: int = 2) -> xr.Dataset:
    ...     return scores * times
    >>> double(xr.Dataset({"kl": ("layer", [1.0])})).attrs["analysis"]
    'toy-double'
    """

    def declare(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if isinstance(result, xr.Dataset | xr.DataTree):
                result.attrs["analysis"] = declared.named(declared.bind(args, kwargs))
            return result

        wanted = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (runs or {}).items()}
        declared = Analysis(
            name, run, version, wanted, dict(new or {}), tuple(keep), section, interventions
        )
        run.analysis = declared  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return declare


def declared_by(function: Callable[..., Any]) -> Analysis:
    """The analysis a function was declared as.

    Raises
    ------
    RequestError
        If it is none.
    """
    found = getattr(function, "analysis", None)
    if not isinstance(found, Analysis):
        name = getattr(function, "__name__", repr(function))
        raise RequestError(
            f"{name} is not declared as an analysis, so it cannot be kept as a run; decorate it with "
            "refusal_nn.runs.analysis."
        )
    return found
