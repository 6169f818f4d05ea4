"""BCa bootstrap of means, paired differences and ratios of means, over whole clusters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from refusal_nn.errors import RequestError
from refusal_nn.stats._clusters import (
    check_finite,
    checked_confidence,
    cluster_codes,
    sum_by_cluster,
)

N_RESAMPLES = 9999
_CHUNK = 4_000_000

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Totals ``[..., column, table]`` to values ``[..., table]``."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with its bootstrap interval.

    Attributes
    ----------
    value, low, high : float, or array of the trailing shape of the data
        NaN ends: the interval is undefined (fewer than two clusters, or a ratio whose denominator
        cannot be told from zero).
    n, n_clusters : int
        Observations, and the clusters that were resampled.
    confidence : float
    method : str
    """

    value: Any
    low: Any
    high: Any
    n: int
    n_clusters: int
    confidence: float
    method: str


def mean(
    values: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean over the first axis with its BCa interval.

    Parameters
    ----------
    values : array-like, ``[n, ...]``
        Observations; each column of the trailing axes is a mean of its own, on the same resamples.
    cluster : array-like, ``[n]``, optional
        Family of each observation; whole families are resampled.
    confidence : float
    n_resamples : int
    seed : int
        The same seed gives the same interval.

    Returns
    -------
    Estimate
        Values that are all equal give an interval of width 0. No observations: NaN.

    Raises
    ------
    RequestError
        If values are not finite, or there is not one cluster label an observation.

    References
    ----------
    Efron 1987, JASA 82 (BCa); Davison and Hinkley 1997, section 3.8 (clusters).

    Examples
    --------
    >>> found = mean([1.0, 2.0, 3.0, 4.0, 10.0])
    >>> f"{found.value:.1f} {found.low < 4.0 < found.high}"
    '4.0 True'
    """
    x = _checked(values, "values")
    table = np.stack([x, np.ones_like(x)], axis=1)
    return _estimate(table, _ratio, cluster, confidence, n_resamples, seed)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of ``a - b`` over the same observations, with its BCa interval.

    Parameters
    ----------
    a, b : array-like, ``[n, ...]``
        Paired along the first axis; trailing axes broadcast.
    cluster, confidence, n_resamples, seed
        As :func:`mean`.

    Returns
    -------
    Estimate
        Above 0: ``a`` is larger.

    Raises
    ------
    RequestError
        As :func:`mean`, or if the numbers of observations differ.
    """
    x, y = _paired(_checked(a, "a"), _checked(b, "b"))
    found = mean(x - y, cluster=cluster, confidence=confidence, n_resamples=n_resamples, seed=seed)
    return replace(found, method=f"paired {found.method}")


def ratio_of_means(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """``mean(numerator) / mean(denominator)`` over the same observations, with its BCa interval.

    Observations are resampled together. Where the interval of the denominator's mean holds 0 the
    ratio is unbounded, and its interval is NaN.

    Parameters
    ----------
    numerator, denominator : array-like, ``[n, ...]``
        Paired along the first axis; trailing axes broadcast.
    cluster, confidence, n_resamples, seed
        As :func:`mean`.

    Returns
    -------
    Estimate

    Raises
    ------
    RequestError
        As :func:`paired_difference`.
    """
    x, y = _paired(_checked(numerator, "numerator"), _checked(denominator, "denominator"))
    table = np.stack([x, y], axis=1)
    found = _estimate(table, _ratio, cluster, confidence, n_resamples, seed)
    below = mean(y, cluster=cluster, confidence=confidence, n_resamples=n_resamples, seed=seed)
    unbounded = ~((np.asarray(below.low) > 0) | (np.asarray(below.high) < 0))
    low, high = (np.where(unbounded, np.nan, end)[()] for end in (found.low, found.high))
    return replace(found, low=low, high=high, method=f"paired {found.method}")


def _estimate(
    table: NDArray[np.float64],
    statistic: Statistic,
    cluster: ArrayLike | None,
    confidence: float,
    n_resamples: int,
    seed: int,
) -> Estimate:
    """BCa interval of a statistic of sums; ``table`` is ``[n, column, ...]``."""
    level = checked_confidence(confidence)
    if n_resamples < 1:
        raise RequestError(f"n_resamples is {n_resamples}; at least 1 is needed (9999 is usual).")
    n, shape = len(table), table.shape[2:]
    codes, n_clusters = cluster_codes(cluster, n)
    sums = sum_by_cluster(table.reshape(n, table.shape[1], math.prod(shape)), codes, n_clusters)
    total = sums.sum(axis=0)
    value = statistic(total)
    low = high = np.full(value.shape, np.nan)
    if n_clusters > 1:
        draws = _resampled(sums, statistic, n_resamples, seed)
        jackknife = statistic(total - sums)
        low, high = _bca(value, draws, jackknife, level)
    unit = "clusters" if cluster is not None else "observations"
    return Estimate(
        value.reshape(shape)[()],
        low.reshape(shape)[()],
        high.reshape(shape)[()],
        n,
        n_clusters,
        level,
        f"BCa bootstrap of {unit}, {n_resamples} resamples, seed {seed}",
    )


def _resampled(
    sums: NDArray[np.float64], statistic: Statistic, n_resamples: int, seed: int
) -> NDArray[np.float64]:
    """The statistic on resampled clusters, ``[resample, table]``."""
    rng = np.random.default_rng(seed)
    k, columns, tables = sums.shape
    flat = sums.reshape(k, -1)
    out = np.empty((n_resamples, tables))
    step = max(1, _CHUNK // k)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = rng.integers(k, size=(rows, k)) + k * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * k).reshape(rows, k)
        out[start : start + rows] = statistic((times @ flat).reshape(rows, columns, tables))
    return out


def _bca(
    value: NDArray[np.float64],
    draws: NDArray[np.float64],
    jackknife: NDArray[np.float64],
    confidence: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r = len(draws)
    # equal values differ by rounding when summed in another order
    scale = 1e-12 * np.maximum(np.abs(value), np.abs(jackknife).max(axis=0))
    below = (draws < value - scale).sum(axis=0) + 0.5 * (np.abs(draws - value) <= scale).sum(axis=0)
    bias = special.ndtri(np.clip(below / r, 0.5 / r, 1 - 0.5 / r))
    away = jackknife.mean(axis=0) - jackknife
    spread = (away**2).sum(axis=0)
    flat = np.abs(away).max(axis=0) <= scale
    safe = np.where(flat, 1.0, spread)
    acceleration = np.where(flat, 0.0, (away**3).sum(axis=0) / (6 * safe**1.5))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + special.ndtri(tail)
        level = special.ndtr(bias + z / (1 - acceleration * z))
        end = np.array([np.quantile(d, q) for d, q in zip(draws.T, level, strict=True)])
        ends.append(np.where(flat, value, end))
    return ends[0], ends[1]


def _ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    above, below = totals[..., 0, :], totals[..., 1, :]
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim == 0:
        raise RequestError(f"{name} is a single number; give one value an observation.")
    check_finite(x, name, "observations")
    return x


def _paired(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Both over the same observations, their trailing axes broadcast."""
    if len(x) != len(y):
        raise RequestError(f"paired data have {len(x)} and {len(y)} observations; they must agree.")
    axes = max(x.ndim, y.ndim)
    return np.broadcast_arrays(
        *(v.reshape(len(v), *(1,) * (axes - v.ndim), *v.shape[1:]) for v in (x, y))
    )
