"""A call of an analysis, sorted: what decides the result, what only decides how fast it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.interventions import Intervention, to_json
from refusal_nn.prompts import Pairs, Prompts
from refusal_nn.runs._analysis import SPEED, Analysis
from refusal_nn.runs._call import call_document, encoded, encoded_runs
from refusal_nn.runs._results import IDENTITY, Result, check_analysis, result_of, same_model
from refusal_nn.runs._used import check_new

if TYPE_CHECKING:
    from refusal_nn.models import Model


@dataclass
class Request:
    """The arguments of one call, by what they are to a run.

    Attributes
    ----------
    name : str
        Of the analysis.
    model : Model or None
    inputs : list of Result
        Results it goes on from.
    arguments : dict
        What the function is called with.
    options : dict
        What else decides the result, as plain data.
    speed : dict
        What does not.
    prompts_hash, interventions : str
    seed : int
    recorded : dict
        Every argument but the model as the record of the call holds it; None for what it cannot hold.
    call : dict
        The record: :func:`refusal_nn.runs._call.call_document`.
    """

    name: str
    model: Model | None
    arguments: dict[str, Any]
    inputs: list[Result] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)
    prompts_hash: str = ""
    interventions: str = "[]"
    seed: int = 0
    recorded: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Of the model; where no pass is made, of the one that made the first input.

        Raises
        ------
        RequestError
            If there is neither, or the input does not say which model made it.
        """
        if self.model is not None:
            return self.model.identity()
        if not self.inputs:
            raise RequestError(
                f"{self.name} was given neither a model nor a result of an analysis, so its run could "
                "not say which model it is of; give an argument model, or one that is declared in runs."
            )
        first = self.inputs[0]
        if missing := [name for name in IDENTITY if name not in first.attrs]:
            raise RequestError(
                f"result {first.name!r} does not say which model made it (its attrs lack "
                f"{', '.join(missing)}); give a run, or what an analysis returned with all its attrs."
            )
        return {name: first.attrs[name] for name in IDENTITY}


def request_of(
    declared: Analysis,
    arguments: Mapping[str, Any],
    stores: str | Path,
    made_from: Sequence[Any] = (),
) -> Request:
    """Sort the arguments of a call.

    Parameters
    ----------
    declared : Analysis
    arguments : mapping
        From :meth:`Analysis.bind`.
    stores : str or Path
        Where runs given by name are.
    made_from : sequence
        Further results that arguments were made from, such as a metric's direction.

    Raises
    ------
    RequestError
        If an input is a result of another analysis or of another model.
    PromptError
        If prompts that must be new were used before.
    """
    request = Request(declared.named(arguments), arguments.get("model"), dict(arguments))
    hashes: list[str] = []
    for name, value in arguments.items():
        if name in declared.runs:
            request.arguments[name] = _take_inputs(request, declared, name, value, stores)
            continue
        if name == "model":
            continue
        request.recorded[name] = encoded(value)
        if name == "seed":
            request.seed = int(value)
        elif name in SPEED:
            request.speed[name] = value
        else:
            hashes += _take_option(request, name, value)
    made = [result_of(value, stores) for value in made_from]
    request.inputs += made
    first = request.inputs[0].attrs.get("prompts_hash", "") if request.inputs else ""
    request.prompts_hash = "+".join(hashes) or str(first)
    if declared.interventions is not None:
        request.interventions = to_json(list(declared.interventions(request.arguments)))
    if request.model is not None:
        for result in request.inputs:
            same_model(result.name, result.attrs, request.model)
    for name, role in declared.new.items():
        for result in request.inputs:
            check_new(arguments[name], result.table(), role=role)
    request.call = call_document(request.name, request.recorded, request.model, made)
    return request


def _take_inputs(
    request: Request, declared: Analysis, name: str, value: Any, stores: str | Path
) -> Any:
    """Note the results of an argument; what the function is given for them."""
    many = isinstance(value, Sequence) and not isinstance(value, str)
    found = [result_of(one, stores) for one in (value if many else [value])]
    for result in found:
        check_analysis(result.name, result.attrs.get("analysis"), declared.runs[name])
    request.inputs += found
    request.recorded[name] = encoded_runs(found, many)
    data = [r.tree if declared.wants_tree(name) else r.table() for r in found]
    return data if many else data[0]


def _take_option(request: Request, name: str, value: Any) -> list[str]:
    """Note an argument that is no input; the hashes of prompts in it."""
    prompts = list(value.values()) if isinstance(value, Mapping) else [value]
    if prompts and all(isinstance(p, Prompts | Pairs) for p in prompts):
        request.options[name] = list(value) if isinstance(value, Mapping) else value.name
        return [p.hash for p in prompts]
    if hasattr(value, "to_attrs"):
        request.options |= value.to_attrs()
        return []
    request.options[name] = _plain(value)
    return []


def _plain(value: Any) -> Any:
    """An option as plain data: interventions as their JSON, arrays by a hash of their numbers."""
    if isinstance(value, np.ndarray | xr.DataArray):
        x = np.ascontiguousarray(value)
        return f"{x.dtype} {list(x.shape)} {hashlib.sha256(x.tobytes()).hexdigest()}"
    if isinstance(value, Intervention):
        return to_json([value])
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
