"""Candidates that cannot be told from the selected one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from refusal_nn.directions._score_table import TABLE
from refusal_nn.errors import RequestError
from refusal_nn.stats import paired_difference

TIE_TOLERANCE = 0.2
"""Bypass within this of the best is a near-tie, in nats, where there are no values per prompt."""


@dataclass(frozen=True)
class NearTie:
    """A candidate whose bypass cannot be told from the selected one's.

    Attributes
    ----------
    position, layer : int
    bypass : float
        In nats.
    difference, low, high : float
        Bypass minus that of the selected candidate (>= 0) and its paired bootstrap interval over
        prompts; NaN ends where the table has no values per prompt, or too few.
    """

    position: int
    layer: int
    bypass: float
    difference: float
    low: float = np.nan
    high: float = np.nan


def near_ties(
    scores: xr.Dataset, ranked: xr.Dataset, tolerance: float, confidence: float, seed: int
) -> tuple[NearTie, ...]:
    """The candidates of ``ranked`` that cannot be told from its first.

    Parameters
    ----------
    scores : xarray.Dataset
        The table, with or without values per prompt.
    ranked : xarray.Dataset
        ``bypass`` over ``candidate`` with its ``position`` and ``layer``, best first.
    tolerance, confidence, seed
        As :func:`refusal_nn.directions.select`.
    """
    bypass = ranked["bypass"].values.astype(float)
    # what is equal is so at infinity, too
    difference = np.subtract(
        bypass, bypass[0], out=np.zeros_like(bypass), where=bypass != bypass[0]
    )
    low, high = np.full((2, len(bypass)), np.nan)
    tied = difference <= tolerance
    if "bypass_per_prompt" in scores:
        low, high = _difference_intervals(scores, ranked, confidence, seed)
        # an interval that one family or none leaves undefined cannot tell the two apart either
        tied = ~(low > 0)
    columns = (*(ranked[dim].values for dim in TABLE), bypass, difference, low, high)
    rows = zip(*(column[tied].tolist() for column in columns), strict=True)
    return tuple(NearTie(*row) for row in rows)[1:]


def _difference_intervals(
    scores: xr.Dataset, ranked: xr.Dataset, confidence: float, seed: int
) -> NDArray[np.float64]:
    """Ends of the interval of each candidate's bypass minus the best one's, ``[low and high, candidate]``.

    Over the prompts that both were measured on; NaN for the best one itself.
    """
    found = scores["bypass_per_prompt"]
    if set(found.dims) != {*TABLE, "prompt"}:
        raise RequestError(
            f"bypass_per_prompt has dims ({', '.join(map(str, found.dims))}); it must have "
            "position, layer and prompt."
        )
    at = {dim: ranked[dim] for dim in TABLE}
    per_prompt = found.sel(at).transpose("candidate", "prompt").values.astype(float)
    measured = np.isfinite(per_prompt)
    groups: dict[bytes, list[int]] = {}
    for i in range(1, len(per_prompt)):
        groups.setdefault((measured[i] & measured[0]).tobytes(), []).append(i)
    ends = np.full((2, len(per_prompt)), np.nan)
    for mask, group in groups.items():
        both = np.frombuffer(mask, dtype=bool)
        interval = paired_difference(
            np.stack([per_prompt[i][both] for i in group], axis=1),
            per_prompt[0][both],
            cluster=scores["family"].values[both] if "family" in scores.coords else None,
            confidence=confidence,
            seed=seed,
        )
        ends[:, group] = interval.low, interval.high
    return ends
