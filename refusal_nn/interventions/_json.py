"""Interventions to JSON and back: how a run records what was done."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

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
    try:
        items = json.loads(text)
        return [_decode(item) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise InterventionError(f"not a list of interventions in JSON: {error}.") from error


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
        if isinstance(value, dict) and "float64" in value:
            raw = np.frombuffer(base64.b64decode(value["float64"]), dtype="<f8")
            fields[name] = raw.reshape(value["shape"]).copy()
    return cls(**fields)
