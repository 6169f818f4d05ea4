"""Patched metrics to recovery: shares of the difference between the prompts of a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refusal_nn import stats
from refusal_nn.patching._exchange import into_harmless

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured

_TABLES = 512


def effects(patched: np.ndarray, start: np.ndarray, interchange: str) -> np.ndarray:
    """What a patch moves towards the other prompt's metric, in the metric's unit.

    Parameters
    ----------
    patched : array, ``[pair, ...]``
        Metric of patched runs.
    start : array, ``[pair]``
        Metric of the runs that were patched.
    interchange : str
        ``sufficiency`` counts a rise of the metric, ``necessity`` a fall.
    """
    moved = patched - start.reshape(-1, *(1,) * (patched.ndim - 1))
    return moved if into_harmless(interchange) else -moved


def effects_of(base: Measured, patched: np.ndarray, interchange: str) -> np.ndarray:
    """:func:`effects` of patched runs of the pairs of a contrast."""
    start = base.corrupted if into_harmless(interchange) else base.clean
    return effects(patched, start, interchange)


def recovery(effect: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Effect of each pair as a share of its difference: 0 none, 1 all; NaN for a difference of 0."""
    below = np.broadcast_to(difference.reshape(-1, *(1,) * (effect.ndim - 1)), effect.shape)
    return np.divide(effect, below, out=np.full(effect.shape, np.nan), where=below != 0)


def mean_recovery(
    effect: np.ndarray,
    difference: np.ndarray,
    *,
    cluster: np.ndarray,
    confidence: float = 0.95,
    n_resamples: int = 9999,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Mean effect over mean difference, with a paired bootstrap interval over families.

    A ratio of means, not a mean of ratios: a pair the model hardly tells apart counts for little
    instead of for anything.

    Returns
    -------
    value, low, high : array
        Of the trailing shape of ``effect``.
    method : str
    """
    shape = effect.shape[1:]
    flat = effect.reshape(len(effect), -1)
    ends: list[list[np.ndarray]] = [[], [], []]
    method = ""
    for start in range(0, flat.shape[1], _TABLES):
        found = stats.ratio_of_means(
            flat[:, start : start + _TABLES],
            difference[:, None],
            cluster=cluster,
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
        )
        method = found.method
        for kept, part in zip(ends, (found.value, found.low, found.high), strict=True):
            kept.append(np.atleast_1d(part))
    value, low, high = (np.concatenate(kept).reshape(shape) for kept in ends)
    return value, low, high, method
