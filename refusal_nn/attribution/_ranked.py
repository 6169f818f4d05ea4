"""The strongest nodes or edges of a table of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError


def ranked(scores: xr.Dataset, n: int = 10) -> list[dict[str, Any]]:
    """The ``n`` nodes or edges with the largest mean score by absolute value.

    Parameters
    ----------
    scores : xarray.Dataset
        From :func:`refusal_nn.attribution.attribute`.
    n : int

    Returns
    -------
    list of dict
        ``src``, for edges ``dst``, ``score`` (mean over pairs) and ``se``, strongest first.

    Raises
    ------
    RequestError
        If the table holds no scores.

    Examples
    --------
    >>> table = xr.Dataset({"node_score_mean": ("src", [1.0, -3.0]), "node_score_se": ("src", [0.1, 0.2])},
    ...     coords={"src": ["input", "m0"]})
    >>> ranked(table, 1)
    [{'src': 'm0', 'score': -3.0, 'se': 0.2}]
    """
    level = next((x for x in ("edge", "node") if f"{x}_score_mean" in scores), None)
    if level is None:
        raise RequestError("the table holds neither edge_score_mean nor node_score_mean.")
    mean, error = (scores[f"{level}_score_{part}"].values for part in ("mean", "se"))
    size = np.where(np.isnan(mean), -1.0, np.abs(mean))
    order = np.argsort(-size, axis=None, kind="stable")[: min(n, int((size >= 0).sum()))]
    dims = [str(d) for d in scores[f"{level}_score_mean"].dims]
    out: list[dict[str, Any]] = []
    for at in zip(*np.unravel_index(order, size.shape), strict=True):
        names = {d: str(scores[d].values[i]) for d, i in zip(dims, at, strict=True)}
        out.append({**names, "score": float(mean[at]), "se": float(error[at])})
    return out
