"""Attrs as plain JSON values, so that every reader of zarr sees the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refusal_nn._files import MAX_DEPTH, check_plain
from refusal_nn.errors import StoreError

_MOST_BITS = 1024


def plain(value: Any, *, where: str = "attrs", depth: int = MAX_DEPTH - 4) -> Any:
    """`value` as JSON types: numpy scalars and arrays unpacked, tuples as lists, NaN as None.

    Parameters
    ----------
    value : Any
    where : str
        Name used in the error.
    depth : int
        Levels of nesting that are left.

    Raises
    ------
    StoreError
        If something in it has no JSON form, or none that could be read again.
    """
    if isinstance(value, str) and not value.isascii():
        check_plain(value, what=where, error=StoreError)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise StoreError(f"{where} holds a number of {value.bit_length()} bits; store it as text.")
    if value is None or isinstance(value, str | bool | int):
        return value
    if not depth:
        raise StoreError(f"{where[:200]}… is nested too deeply to be stored; make it flatter.")
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where=where, depth=depth)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {
            plain(str(k), where=f"a key of {where}"): plain(
                v, where=f"{where}[{str(k)!r}]", depth=depth - 1
            )
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(v, where=f"{where}[{i}]", depth=depth - 1) for i, v in enumerate(value)]
    raise StoreError(
        f"{where} holds a {type(value).__name__}, which JSON cannot; "
        "store text, numbers, lists or dicts."
    )


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces."""
    return json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
