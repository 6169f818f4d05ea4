"""Attrs as plain JSON values, so that every reader of zarr sees the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refusal_nn.errors import StoreError


def plain(value: Any, *, where: str = "attrs") -> Any:
    """`value` as JSON types: numpy scalars and arrays unpacked, tuples as lists, NaN as None.

    Parameters
    ----------
    value : Any
    where : str
        Name used in the error.

    Raises
    ------
    StoreError
        If something in it has no JSON form.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where=where)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v, where=f"{where}[{str(k)!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, where=f"{where}[{i}]") for i, v in enumerate(value)]
    raise StoreError(
        f"{where} holds a {type(value).__name__}, which JSON cannot; "
        "store text, numbers, lists or dicts."
    )


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces."""
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
