"""Patched metrics to recovery: shares of the difference between the prompts of a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn import stats
from refusal_nn.patching._exchange import SIDES_OF

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured

_TABLES = 512


def effects(base: Measured, patched: np.ndarray, interchange: str) -> np.ndarray:
    """What a patch moves towards the other prompt's metric, in the metric's unit.

    Parameters
    ----------
    base : Measured
    patched : array, ``[pair, ...]``
        Metric of patched runs.
    interchange : str
        ``sufficiency`` counts a rise of the metric, ``necessity`` a fall.
    """
    ran, _ = SIDES_OF[interchange]
    moved = patched - getattr(base, ran).reshape(-1, *(1,) * (patched.ndim - 1))
    return moved if ran == "corrupted" else -moved


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
    flat = effect.reshape(len(effect), -1)
    found = [
        stats.ratio_of_means(
            flat[:, start : start + _TABLES],
            difference[:, None],
            cluster=cluster,
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
        )
        for start in range(0, flat.shape[1], _TABLES)
    ]
    value, low, high = (
        np.hstack([getattr(part, end) for part in found]).reshape(effect.shape[1:])
        for end in ("value", "low", "high")
    )
    return value, low, high, found[0].method


def recovery_table(
    base: Measured, effect: xr.DataArray, *, confidence: float, seed: int
) -> xr.Dataset:
    """Recovery of every pair and of all with its interval, beside the pairs' unpatched runs.

    Parameters
    ----------
    base : Measured
    effect : xarray.DataArray
        What exchanges move, over ``prompt`` and what was exchanged.
    confidence, seed
        Of the interval; see :func:`mean_recovery`.
    """
    share = effect.copy(data=recovery(effect.values, base.difference))
    *ends, method = mean_recovery(
        effect.values,
        base.difference,
        cluster=base.pairs.family,
        confidence=confidence,
        seed=seed,
    )
    means = {
        f"recovery_mean{end}": (effect.dims[1:], values)
        for end, values in zip(("", "_low", "_high"), ends, strict=True)
    }
    return xr.Dataset(
        {
            **base.variables(),
            "recovery": share.transpose("interchange", "prompt", ..., missing_dims="ignore"),
            **means,
        },
        coords=base.labels(),
        attrs={"interval": method, "confidence": confidence},
    )
