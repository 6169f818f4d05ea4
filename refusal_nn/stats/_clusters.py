"""Checks and sums shared by the intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import RequestError


def checked_confidence(confidence: float) -> float:
    """``confidence`` if it is a level, else an error."""
    if not 0 < confidence < 1:
        raise RequestError(
            f"confidence {confidence!r} is not between 0 and 1; give for example .95."
        )
    return float(confidence)


def check_finite(values: NDArray[np.float64], name: str, unit: str) -> None:
    """Refuse NaN and infinity; ``unit`` is what the user may drop."""
    if not np.isfinite(values).all():
        raise RequestError(
            f"{name} hold {int((~np.isfinite(values)).sum())} values that are not finite; drop those "
            f"{unit} first."
        )


def cluster_codes(cluster: ArrayLike | None, n: int) -> tuple[NDArray[np.intp], int]:
    """Number each observation's cluster from 0 on, in order of label.

    Parameters
    ----------
    cluster : array-like, ``[n]``, optional
        Labels; without them each observation is its own cluster.
    n : int
        Observations.

    Returns
    -------
    codes : array, ``[n]``
    n_clusters : int

    Raises
    ------
    RequestError
        If there is not one label an observation.
    """
    if cluster is None:
        return np.arange(n), n
    labels = np.asarray(cluster)
    if labels.shape != (n,):
        raise RequestError(
            f"cluster has shape {labels.shape} for {n} observations; give one label for each."
        )
    if labels.dtype.kind not in "iuf":  # object and variable-width strings alike
        labels = np.array([str(label) for label in labels.tolist()], dtype=str)
    unique, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.intp), len(unique)


def sum_by_cluster(
    values: NDArray[np.float64], codes: NDArray[np.intp], n_clusters: int
) -> NDArray[np.float64]:
    """Sum rows of ``values`` ``[n, ...]`` within clusters: ``[cluster, ...]``."""
    out = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(out, codes, values)
    return out
