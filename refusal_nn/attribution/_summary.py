"""Mean scores and their error, read a few prompts at a time: a table may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import xarray as xr
from numpy.typing import NDArray

_BYTES = 4 << 20


def each(scores: xr.DataArray, order: NDArray[np.int_] | None = None) -> Iterator[NDArray]:
    """Scores of one prompt after the other, float64.

    Parameters
    ----------
    scores : xarray.DataArray
        Over ``prompt`` and more; may lie on disk.
    order : array of int, optional
        Prompts in the order they are wanted; default all.
    """
    table = scores.transpose("prompt", ...)
    size = max(1, _BYTES // max(1, table[:1].nbytes))
    for first in range(0, len(table), size):
        some = slice(first, first + size)
        yield from table[some if order is None else order[some]].values.astype(np.float64)


def mean(scores: xr.DataArray) -> NDArray[np.float64]:
    """Mean over prompts; NaN where one has no score."""
    total = sum(each(scores), np.zeros(()))
    return np.asarray(total / scores.sizes["prompt"])


def family_sums(
    scores: xr.DataArray, code: NDArray[np.int_], less: NDArray[np.float64] | float = 0.0
) -> Iterator[NDArray[np.float64]]:
    """Sum over the prompts of one family after the other.

    Parameters
    ----------
    scores : xarray.DataArray
    code : array of int, ``[prompt]``
        Number of each prompt's family, from 0 without gaps.
    less : array or float
        Taken off each prompt's scores.
    """
    order = np.argsort(code, kind="stable")
    found = zip(code[order].tolist(), each(scores, order), strict=True)
    for _, members in groupby(found, key=lambda one: one[0]):
        yield np.asarray(sum(values - less for _, values in members))


def summary(table: xr.Dataset, level: str, family: np.ndarray) -> dict[str, xr.DataArray]:
    """Mean over pairs and its standard error, pairs of a family counted as one draw.

    The error is that of a mean of clusters of unequal size, with the small-sample factor ``G / (G -
    1)``; where every pair is a family of its own, it is the usual one.
    """
    scores = table[f"{level}_score"]
    middle = mean(scores)
    error = np.full_like(middle, np.nan)
    names, code = np.unique(family.astype(str), return_inverse=True)
    if (groups := len(names)) > 1:
        squares = sum(total**2 for total in family_sums(scores, code, middle))
        error = np.sqrt(squares * groups / (groups - 1)) / len(family)
    like = scores.isel(prompt=0, drop=True)
    coords = {name: c for name, c in like.coords.items() if c.dims}
    return {
        f"{level}_score_{part}": xr.DataArray(values, coords, like.dims)
        for part, values in (("mean", middle), ("se", error))
    }
