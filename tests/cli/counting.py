"""A small analysis, as an installed package would add it: the norms of seeded random vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.runs import analysis
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from refusal_nn.models import Model

LAYERS = 6
ENTRY_POINTS = {"count-norms": "tests.cli.counting:norms"}

computed: list[int] = []
"""Layers computed so far."""
stop_at = -1
"""Layer at which Ctrl-C is pressed."""


def length(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


@analysis("count-norms")
def norms(model: Model, *, seed: int = 0, recorder: Recorder | None = None) -> xr.Dataset:
    """Store the norms of seeded random vectors, one layer a batch.

    Parameters
    ----------
    model : Model
        Named, not run.
    seed : int
        Of the vectors.
    recorder : Recorder, optional
    """
    template = xr.Dataset(
        {"direction_norm": ("layer", np.full(LAYERS, np.nan))},
        coords={"layer": np.arange(LAYERS)},
    )
    batches = [{"layer": slice(i, i + 1)} for i in range(LAYERS)]

    def compute(i: int) -> xr.Dataset:
        if i == stop_at:
            raise KeyboardInterrupt
        computed.append(i)
        return template.isel(batches[i]).fillna(
            length(np.random.default_rng([seed, i]).normal(size=8))
        )

    keep = recorder if recorder is not None else MemoryRecorder()
    return keep.stage("norms", template, batches, compute)
