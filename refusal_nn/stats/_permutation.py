"""Sign-flip permutation tests of paired effects, with corrections for many tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import RequestError
from refusal_nn.stats._clusters import check_finite, cluster_codes, sum_by_cluster

_CHUNK = 4_000_000

Correction = Literal["max-t", "holm", "bh"]


@dataclass(frozen=True)
class SignFlip:
    """Result of :func:`sign_flip`.

    Attributes
    ----------
    effect : array
        Mean effect, of the trailing shape of the data.
    p, p_adjusted : array
        Permutation p-value of each effect, and the same corrected for the number of effects.
    n, n_clusters : int
        Observations, and the clusters whose signs were flipped together.
    method : str
    """

    effect: NDArray[np.float64]
    p: NDArray[np.float64]
    p_adjusted: NDArray[np.float64]
    n: int
    n_clusters: int
    method: str


def sign_flip(
    effects: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    alternative: Literal["greater", "two-sided"] = "greater",
    correction: Correction = "max-t",
    n_permutations: int = 9999,
    seed: int = 0,
) -> SignFlip:
    """Test whether mean paired effects are 0, by flipping the signs of whole clusters.

    If exchanging the two members of a pair changes nothing, the sign of each family's effects is as
    likely to be the other one. The statistic is the mean over its standard error, so that effects
    of different spread compare; ``p = (1 + #{T* >= T}) / (1 + permutations)``.

    Parameters
    ----------
    effects : array-like, ``[n, ...]``
        Paired differences; trailing axes are effects of their own, tested on the same flips.
    cluster : array-like, ``[n]``, optional
        Family of each observation; a family is flipped as a whole.
    alternative : {"greater", "two-sided"}
    correction : {"max-t", "holm", "bh"}
        ``max-t``: against the largest statistic of each permutation (Westfall and Young), which
        controls the family-wise error and uses how the effects go together; ``holm``: family-wise
        error; ``bh``: false discovery rate (Benjamini and Hochberg).
    n_permutations, seed : int

    Returns
    -------
    SignFlip

    Raises
    ------
    RequestError
        If effects are not finite, there is no observation, or an option is unknown.

    References
    ----------
    Westfall and Young 1993, *Resampling-based multiple testing*; Winkler et al. 2014, NeuroImage 92
    (sign flips of blocks); Phipson and Smyth 2010 (the 1 in the p-value).

    Examples
    --------
    >>> found = sign_flip([[1.0, -1.0], [2.0, 1.0], [1.5, -0.5], [1.0, 0.5], [3.0, 0.1]] * 2)
    >>> (found.p < 0.05).tolist()
    [True, False]
    """
    x = np.asarray(effects, dtype=float)
    if x.ndim == 0 or not len(x):
        raise RequestError("effects are empty; give one value a pair.")
    check_finite(x, "effects", "pairs")
    if alternative not in ("greater", "two-sided"):
        raise RequestError(f"alternative is 'greater' or 'two-sided', not {alternative!r}.")
    if n_permutations < 1:
        raise RequestError(f"n_permutations is {n_permutations}; at least 1 is needed.")
    n, shape = len(x), x.shape[1:]
    codes, k = cluster_codes(cluster, n)
    sums = sum_by_cluster(x.reshape(n, -1), codes, k)
    # flips leave the sum of squares alone, so the statistic is the standardised total
    scale = np.sqrt((sums**2).sum(axis=0))
    unit = np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)
    observed = _two_sided(unit.sum(axis=0), alternative)
    # totals differ by rounding when added in another order
    bar = observed - 1e-9
    above = np.zeros(observed.shape, dtype=np.int64)
    highest = np.zeros(observed.shape, dtype=np.int64)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(*unit.shape, 1))
    for start in range(0, n_permutations, step):
        rows = min(step, n_permutations - start)
        signs = 2.0 * rng.integers(0, 2, size=(rows, k)) - 1.0
        drawn = _two_sided(signs @ unit, alternative)
        above += (drawn >= bar).sum(axis=0)
        if correction == "max-t":
            highest += (drawn.max(axis=1, keepdims=True) >= bar).sum(axis=0)
    p = (1 + above) / (1 + n_permutations)
    # an effect that is exactly 0 everywhere is no evidence of anything
    p = np.where(scale > 0, p, 1.0)
    if correction == "max-t":
        adjusted = np.where(scale > 0, (1 + highest) / (1 + n_permutations), 1.0)
    else:
        adjusted = adjust(p, correction)
    unit_name = "clusters" if cluster is not None else "observations"
    return SignFlip(
        x.mean(axis=0),
        p.reshape(shape)[()],
        adjusted.reshape(shape)[()],
        n,
        k,
        f"sign flips of {unit_name}, {alternative}, {n_permutations} permutations, seed {seed}; "
        f"adjusted by {correction}",
    )


def adjust(p: ArrayLike, correction: Literal["holm", "bh"]) -> NDArray[np.float64]:
    """P-values corrected for their number, in any shape.

    Parameters
    ----------
    p : array-like
        In 0 to 1.
    correction : {"holm", "bh"}
        ``holm`` bounds the chance of any false rejection, ``bh`` the expected share of them.

    Returns
    -------
    array
        Of the shape of ``p``; reject where it is at most the level.

    Raises
    ------
    RequestError
        If a value is not in 0 to 1 or the correction is unknown.

    References
    ----------
    Holm 1979, Scandinavian Journal of Statistics 6; Benjamini and Hochberg 1995, JRSS B 57.

    Examples
    --------
    >>> [round(float(v), 3) for v in adjust([0.01, 0.04, 0.03], "holm")]
    [0.03, 0.06, 0.06]
    >>> [round(float(v), 3) for v in adjust([0.01, 0.04, 0.03], "bh")]
    [0.03, 0.04, 0.04]
    """
    values = np.asarray(p, dtype=float)
    if not np.all((values >= 0) & (values <= 1)):
        raise RequestError("p-values lie between 0 and 1.")
    flat = values.ravel()
    m = len(flat)
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    if correction == "holm":
        stepped = np.maximum.accumulate(ranked * np.arange(m, 0, -1))
    elif correction == "bh":
        stepped = np.minimum.accumulate((ranked * m / np.arange(1, m + 1))[::-1])[::-1]
    else:
        raise RequestError(f"correction is 'max-t', 'holm' or 'bh', not {correction!r}.")
    out = np.empty(m)
    out[order] = np.minimum(stepped, 1.0)
    return out.reshape(values.shape)


def _two_sided(
    statistic: NDArray[np.float64], alternative: Literal["greater", "two-sided"]
) -> NDArray[np.float64]:
    return np.abs(statistic) if alternative == "two-sided" else statistic
