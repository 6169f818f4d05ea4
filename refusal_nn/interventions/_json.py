"""Interventions to JSON and back: how a run records what was done."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from refusal_nn._files import parse_json
from refusal_nn.errors import InterventionError
from refusal_nn.interventions._function import FunctionIntervention
from refusal_nn.interventions._intervention import Intervention
from refusal_nn.interventions._named import (
    ActivationAddition,
    DirectionalAblation,
    MeanAblation,
    Patch,
    ZeroAblation,
)

_KINDS = {
    cls.kind: cls
    for cls in (DirectionalAblation, ActivationAddition, ZeroAblation, MeanAblation, Patch)
}


def to_json(interventions: Iterable[Intervention]) -> str:
    """The interventions as JSON; :func:`from_json` gives them back exactly.

    Of a :class:`FunctionIntervention` it holds names and hashes, which nothing can be made of again.
    """
    return json.dumps([i.encode() for i in interventions], sort_keys=True)


def from_json(text: str) -> list[Intervention]:
    """Interventions from :func:`to_json`'s output.

    Raises
    ------
    InterventionError
        If the text is not a list of known interventions, or one of them is a function of the user's.
    """
    if not isinstance(text, str):
        raise InterventionError("not a list of interventions in JSON: no text.")
    try:
        items = parse_json(text, what="a record of interventions", error=InterventionError)
    except InterventionError as error:
        raise InterventionError(f"not a list of interventions in JSON: {error}") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InterventionError("not a list of interventions in JSON: it holds something else.")
    try:
        return [_decode(item) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InterventionError(f"not a list of interventions in JSON: {reason}.") from error


def _decode(item: dict[str, Any]) -> Intervention:
    fields = dict(item)
    if fields.get("kind") == FunctionIntervention.kind:
        raise InterventionError(
            f"the intervention is a function of your own, {fields['function']} (SHA-256 of its source "
            f"{fields['source_sha256'][:12]}), which JSON names and does not hold; make it again with "
            "FunctionIntervention."
        )
    cls = _KINDS[fields.pop("kind")]
    for name, value in fields.items():
        if isinstance(value, dict):
            fields[name] = _array(name, value)
        elif isinstance(value, float | bool) and name != "coefficient":
            raise ValueError(f"{name} is {value!r}")
    return cls(**fields)


def _array(name: str, value: dict[str, Any]) -> np.ndarray:
    shape = value.get("shape")
    if set(value) != {"shape", "float64"} or not isinstance(shape, list):
        raise ValueError(f"{name} is no array")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape) or len(shape) > 8:
        raise ValueError(f"the shape of {name} is none")
    raw = base64.b64decode(value["float64"], validate=True)
    if len(raw) != 8 * prod(shape):
        raise ValueError(f"{name} has {len(raw)} bytes for another shape")
    return np.frombuffer(raw, dtype="<f8").reshape(shape).copy()
