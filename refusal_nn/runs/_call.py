"""How a run records the call that made it: plain data, from which it can be made again.

Nothing that was typed is in it, and nothing that could run: an analysis by name, its arguments by
value, the runs it goes on from by name and hash, the model by what it is called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from refusal_nn.interventions import FunctionIntervention, Intervention
from refusal_nn.models import EMBEDDED
from refusal_nn.prompts import Pairs, Prompts
from refusal_nn.store.provenance import require_public

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.runs._results import Result

FORMAT = 1

SETS: dict[str, type[Prompts] | type[Pairs]] = {"prompts": Prompts, "pairs": Pairs}


class Recordable(Protocol):
    """What a call can be recorded with: plain data and back."""

    def to_attrs(self) -> dict[str, Any]:
        """As plain data."""
        ...

    @classmethod
    def from_attrs(cls, attrs: Any) -> Self:
        """What :meth:`to_attrs` described."""
        ...


R = TypeVar("R", bound=type[Recordable])
RECORDABLE: dict[str, type[Recordable]] = {}
"""Types of arguments that a record holds by their attrs, by the lower-case name of the type."""


def recordable(made: R) -> R:
    """Let a record of a call hold arguments of the decorated type."""
    RECORDABLE[made.__name__.lower()] = made
    return made


def encoded(value: Any) -> dict[str, Any] | None:
    """An argument under the name of its kind; None for what no record holds.

    Held are plain values, prompts and pairs as rows, interventions, :func:`recordable` types, and
    mappings of these. Arrays, results in memory and functions of the user's are not.
    """
    for kind, rows in SETS.items():
        if isinstance(value, rows):
            return {kind: {"name": value.name, "rows": value.to_rows()}}
    kind = type(value).__name__.lower()
    if kind in RECORDABLE and isinstance(value, RECORDABLE[kind]):
        return {kind: value.to_attrs()}
    listed = isinstance(value, list | tuple)
    if listed and value and all(isinstance(one, Intervention) for one in value):
        if any(isinstance(one, FunctionIntervention) for one in value):
            return None
        return {"interventions": [one.encode() for one in value]}
    if isinstance(value, Mapping) and not _is_plain(value):
        each = {str(key): encoded(one) for key, one in value.items()}
        return None if None in each.values() else {"each": each}
    return {"value": _plain(value)} if _is_plain(value) else None


def encoded_runs(found: Sequence[Result], many: bool) -> dict[str, Any] | None:
    """Results that an argument is; None where one is not a run."""
    if not all(result.kept for result in found):
        return None
    named = [{"run": result.name, "hash": result.hash} for result in found]
    return {"runs": named} if many else {"run": named[0]}


def call_document(
    analysis: str,
    arguments: Mapping[str, dict[str, Any] | None],
    model: Model | None,
    made_from: Sequence[Result],
) -> dict[str, Any]:
    """The record of a call.

    Parameters
    ----------
    analysis : str
    arguments : mapping
        Each as :func:`encoded`, the model left out.
    model : Model or None
    made_from : sequence of Result
        Results that arguments were made from.

    Returns
    -------
    dict
        ``format``, ``analysis``, ``arguments``, ``model``, ``made_from``, and in ``unrecorded`` the
        arguments that no record holds: such a call is made again by the code that made it.

    Raises
    ------
    StoreError
        If an argument holds an absolute path or a key.
    """
    lacking = [name for name, value in arguments.items() if value is None]
    lacking += ["made_from"] if encoded_runs(made_from, many=True) is None else []
    document = {
        "format": FORMAT,
        "analysis": analysis,
        "arguments": {name: value for name, value in arguments.items() if value is not None},
        "model": None if model is None else _model(model),
        "made_from": (encoded_runs(made_from, many=True) or {"runs": []})["runs"],
        "unrecorded": lacking,
    }
    require_public(_without_rows(document), where="the record of the call")
    return document


def _model(model: Model) -> dict[str, Any]:
    """What a model is loaded by: never a folder, which is of one machine."""
    known = model.identity()
    here = model.name in EMBEDDED or not model.source or Path(model.source).is_dir()
    template = model.chat_template
    # a server's model is known by the commit it has, and may have been asked for without one
    revision = getattr(model.backend, "revision", known["revision"])
    return {
        "name": model.name,
        "kind": "embedded" if model.name in EMBEDDED else "folder" if here else "hub",
        "revision": revision or None,
        "dtype": known["dtype"],
        "device": known["device"],
        "backend": known["backend"],
        "chat_template": template if template in (None, "raw") else "file",
        "attn_implementation": getattr(model.module.config, "_attn_implementation", None),
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(one) for one in value)
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, float | np.floating):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int | str | np.integer | np.bool_)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _without_rows(document: Any) -> Any:
    """A document but for the rows of sets: a prompt may speak of a path."""
    if isinstance(document, Mapping):
        if set(document) == {"name", "rows"}:
            return document["name"]
        return {k: _without_rows(v) for k, v in document.items()}
    return [_without_rows(v) for v in document] if isinstance(document, list) else document
