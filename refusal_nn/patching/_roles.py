"""Gate, amplifier or neither: what refusal heads do to one another, and how stably they are found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from refusal_nn.patching._sets import Head

FALLEN = 0.5
"""A head falls with another if at least this share of its difference between the prompts goes."""

_ROLES = {
    (True, False): "gate",
    (False, True): "amplifier",
    (True, True): "relay",
    (False, False): "independent",
}
"""By whether later heads fall with it, and whether it falls with an earlier one."""


def roles(heads: Sequence[Head], cascade: np.ndarray) -> dict[Head, str]:
    """The role of each head in a cascade.

    Parameters
    ----------
    heads : sequence of Head
        In the order of the axes of ``cascade``.
    cascade : array, ``[src, dst]``
        Share of ``dst`` that goes when ``src`` is exchanged; NaN where there is no path.

    Returns
    -------
    dict
        ``gate``: later heads fall with it; ``amplifier``: it falls with an earlier one; ``relay``:
        both; ``independent``: neither.

    References
    ----------
    arXiv 2604.04385.
    """
    falls = np.nan_to_num(cascade) >= FALLEN
    sides = zip(heads, falls.any(axis=1).tolist(), falls.any(axis=0).tolist(), strict=True)
    return {head: _ROLES[fells, fallen] for head, fells, fallen in sides}


def bands(found: dict[Head, str]) -> dict[Head, int]:
    """The band of each head: runs of neighbouring blocks that hold heads of one role.

    Numbered from 0 by first block, then by role.
    """
    runs: list[tuple[int, str, list[Head]]] = []
    for role in sorted(set(found.values())):
        last: list[Head] = []
        for head in sorted(head for head, r in found.items() if r == role):
            if not last or head[0] > last[-1][0] + 1:
                last = []
                runs.append((head[0], role, last))
            last.append(head)
    return {head: i for i, (_, _, members) in enumerate(sorted(runs)) for head in members}


def stability(
    effect: np.ndarray,
    difference: np.ndarray,
    *,
    family: np.ndarray,
    selected: np.ndarray,
    alpha: float,
    min_effect: float,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, float, float]:
    """How often each head is found again when whole families of pairs are resampled.

    A head is found in a resample where, in one direction of exchange, it carries ``min_effect`` of
    the difference and its standardised effect passes the level corrected for all heads and
    directions, by the normal approximation to the permutation test. No model pass is made.

    Parameters
    ----------
    effect : array, ``[pair, interchange, layer, head]``
    difference : array, ``[pair]``
    family : array, ``[pair]``
    selected : array of bool, ``[layer, head]``
        Those found on all pairs.
    alpha, min_effect : float
    n_resamples, seed : int

    Returns
    -------
    frequency : array, ``[layer, head]``
        Share of the resamples in which a head is found.
    jaccard : float
        Mean Jaccard index of a resample's set with ``selected``; NaN if both are empty throughout.
    pairwise : float
        Mean Jaccard index of two resamples' sets.
    """
    _, codes = np.unique(family.astype(str), return_inverse=True)
    k = int(codes.max()) + 1
    flat = effect.reshape(len(effect), -1)
    sums = np.zeros((k, flat.shape[1]))
    np.add.at(sums, codes, flat)
    whole = np.bincount(codes, weights=difference, minlength=k)
    critical = special.ndtri(1 - alpha / flat.shape[1])
    rng = np.random.default_rng(seed)
    times = rng.multinomial(k, np.full(k, 1 / k), size=n_resamples).astype(float)
    totals = times @ sums
    spread = np.sqrt(times @ sums**2)
    scaled = np.divide(totals, spread, out=np.zeros_like(totals), where=spread > 0)
    carried = totals / (times @ whole)[:, None]
    found = ((scaled >= critical) & (carried >= min_effect)).reshape(n_resamples, *effect.shape[1:])
    sets = found.any(axis=1).reshape(n_resamples, -1)
    chosen = selected.ravel()
    jaccard = _mean_share((sets & chosen).sum(axis=1), (sets | chosen).sum(axis=1))
    shared = sets.astype(float) @ sets.T.astype(float)
    sizes = sets.sum(axis=1)
    upper = np.triu_indices(n_resamples, 1)
    pairwise = _mean_share(shared[upper], (sizes[:, None] + sizes - shared)[upper])
    return sets.mean(axis=0).reshape(selected.shape), jaccard, pairwise


def _mean_share(both: np.ndarray, either: np.ndarray) -> float:
    """Mean Jaccard index of pairs of sets, from the sizes of their intersections and unions."""
    some = either > 0
    return float((both[some] / either[some]).mean()) if some.any() else np.nan
