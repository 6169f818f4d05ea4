"""Rates of refusal with intervals, from judged completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rates(judged: xr.Dataset, *, confidence: float = 0.95) -> xr.Dataset:
    """Refusal rates with intervals by style, and by style and category.

    Prompts of one family (the same request in several templates) are not independent, so intervals
    are clustered by family.

    Parameters
    ----------
    judged : xarray.Dataset
        From :func:`judge`.
    confidence : float

    Returns
    -------
    xarray.Dataset
        See :func:`evaluate`, group ``rates``.
    """
    (styles, of_style), (categories, of_category) = (
        _members(judged[name].values) for name in ("style", "category")
    )
    dims = ("style", "category")
    both = of_style[:, None] & of_category
    out = rate_table(judged, dims[:1], of_style, confidence=confidence)
    out |= rate_table(judged, dims, both, prefix="category_", confidence=confidence)
    if "refusal_score" in judged:
        # the substrings count a refusal anywhere, also one that follows the start of an answer
        begins = judged["refusal_score"].values > 0
        shares = np.stack([begins[:, mask].mean(axis=1) for mask in of_style], axis=1)
        out["first_token_refusal_rate"] = (("intervention", "style"), shares)
    return xr.Dataset(
        out,
        coords={
            "intervention": judged["intervention"].values,
            "style": styles,
            "category": categories,
        },
        attrs={"confidence": confidence, "method": "Wilson, effective n clustered by family"},
    )


def rate_table(
    judged: xr.Dataset,
    dims: tuple[str, ...],
    masks: NDArray[np.bool_],
    *,
    prefix: str = "",
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Rates of every condition over sets of prompts; NaN (and n = 0) where a set is empty.

    Parameters
    ----------
    judged : xarray.Dataset
        ``refused`` and ``coherent`` over ``(intervention, prompt)``, with coord ``family``.
    dims : tuple of str
        What the sets of prompts are labelled by.
    masks : array of bool, ``[*dims, prompt]``
        The prompts of each set.
    prefix : str
        Of the names of the variables.
    confidence : float

    Returns
    -------
    dict
        ``refusal_rate``, ``_low``, ``_high``, ``_n`` and ``coherent_rate`` over ``(intervention,
        *dims)``, with the prefix.
    """
    family = judged["family"].values
    refused, coherent = judged["refused"].values, judged["coherent"].values
    shape = (len(refused), *masks.shape[:-1])
    names = ("refusal_rate", "refusal_rate_low", "refusal_rate_high", "coherent_rate")
    tables = {name: np.full(shape, np.nan) for name in names}
    n = np.zeros(shape, dtype=np.int64)
    for place in np.ndindex(shape):
        i, mask = place[0], masks[place[1:]]
        if not mask.any():
            continue
        found = stats.rate(refused[i][mask], cluster=family[mask], confidence=confidence)
        values = (found.rate, found.low, found.high, coherent[i][mask].mean())
        for table, value in zip(tables.values(), values, strict=True):
            table[place] = value
        n[place] = found.n
    tables["refusal_rate_n"] = n
    return {f"{prefix}{name}": (("intervention", *dims), table) for name, table in tables.items()}


def rate_rows(table: xr.Dataset) -> list[dict[str, Any]]:
    """The rates by condition and style as rows: intervention, style, rate, low, high, n, coherent."""
    rows = []
    for intervention in table["intervention"].values:
        for style in table["style"].values:
            at = table.sel(intervention=intervention, style=style)
            rows.append({"intervention": str(intervention), "style": str(style), **rate_of(at)})
    return rows


def rate_of(at: xr.Dataset, prefix: str = "") -> dict[str, Any]:
    """One rate as plain numbers: ``rate``, ``low``, ``high``, ``n``, ``coherent`` (shares, a count).

    Parameters
    ----------
    at : xarray.Dataset
        A rates table at one condition, style and, with prefix ``category_``, category.
    """
    name = f"{prefix}refusal_rate"
    return {
        "rate": float(at[name]),
        "low": float(at[f"{name}_low"]),
        "high": float(at[f"{name}_high"]),
        "n": int(at[f"{name}_n"]),
        "coherent": float(at[f"{prefix}coherent_rate"]),
    }


def _members(labels: NDArray[Any]) -> tuple[list[str], NDArray[np.bool_]]:
    """Labels in the order they first appear, and who has each, ``[label, prompt]``."""
    present = list(dict.fromkeys(str(label) for label in labels))
    return present, np.array([labels == label for label in present]).reshape(len(present), -1)
