"""Choose one candidate direction from a table of scores, by the published rule.

A pure function of the table: where the scores came from does not matter.

References
----------
Arditi et al. 2024, *Refusal in language models is mediated by a single direction*, appendix C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from refusal_nn.directions._near_ties import TIE_TOLERANCE, near_ties
from refusal_nn.directions._score_table import (
    SCORES,
    TABLE,
    as_dataset,
    checked_table,
    layers_of_model,
)
from refusal_nn.directions._selection import Selection
from refusal_nn.directions._thresholds import (
    INDUCE_MIN,
    KL_MAX,
    LAYER_FRACTION,
    checked_thresholds,
    first_late_layer,
)
from refusal_nn.errors import RequestError
from refusal_nn.runs import analysis, same_model, used

if TYPE_CHECKING:
    from refusal_nn.models import Model

FILTERS = ("nan", "layer", "kl", "induce")
"""Criteria of the rule, in the order they are reported."""


def admissible(
    scores: xr.Dataset,
    *,
    kl_max: float = KL_MAX,
    induce_min: float = INDUCE_MIN,
    layer_fraction: float = LAYER_FRACTION,
) -> xr.Dataset:
    """Which candidates pass the published criteria.

    A candidate drops out if a score is NaN, its layer is ``int(layer_fraction * L)`` or later, its
    KL is above ``kl_max``, or its induce score is below ``induce_min``. Equality stays. L is
    ``scores.attrs["n_layers"]``, else the largest layer of the table + 1.

    Parameters
    ----------
    scores : xarray.Dataset
        As for :func:`select`.
    kl_max, induce_min : float
        In nats.
    layer_fraction : float
        Share of the layers that candidates may come from, in 0 to 1.

    Returns
    -------
    xarray.Dataset
        ``admissible`` (bool) over ``(position, layer)`` and ``passes`` (bool) over
        ``(filter, position, layer)``, with filters nan, layer, kl, induce. A NaN score fails
        ``nan`` alone. attrs ``n_layers``.

    Raises
    ------
    RequestError
        If the table lacks a score, a dim or a label, or a threshold is no number.
    """
    scores = as_dataset(scores)
    return _admissible(
        checked_table(scores),
        layers_of_model(scores),
        checked_thresholds(kl_max, induce_min, layer_fraction),
    )


@analysis(
    "direction-select",
    runs={"scores": "direction-score"},
    section="refusal_nn.report._direction:part",
)
def select(
    scores: xr.Dataset,
    *,
    model: Model | None = None,
    kl_max: float = KL_MAX,
    induce_min: float = INDUCE_MIN,
    layer_fraction: float = LAYER_FRACTION,
    tie_tolerance: float = TIE_TOLERANCE,
    confidence: float = 0.95,
    seed: int = 0,
) -> Selection:
    """The admissible candidate with the smallest bypass score.

    See :func:`admissible` for who may stand. Exact ties go to the lowest position, then the lowest
    layer.

    Parameters
    ----------
    scores : xarray.Dataset
        Or the opened run that holds it (its root group is used). ``bypass``, ``induce`` and ``kl``
        in nats over ``position`` (labelled -n to -1) and ``layer`` (0 and up), in any order; a
        subset of either is fine. Optional:
        ``direction(position, layer, d_model)``; ``bypass_per_prompt(position, layer, prompt)``,
        NaN for prompts a candidate was not measured on, with coord ``family``.
        ``attrs["n_layers"]``: layers of the model.
    model : Model, optional
        No pass is made; where it is given, the scores must be of it.
    kl_max : float
        Largest KL, in nats. Equality stays.
    induce_min : float
        Least induce score. In nats; equality stays.
    layer_fraction : float in (0, 1]
        Layers from int(fraction x layers) on are left out.
    tie_tolerance : float
        Without values per prompt: bypass within this of the best is a near-tie, in nats.
    confidence : float
        With values per prompt: a near-tie is a candidate for which the paired bootstrap interval of
        the difference, resampled by family, holds 0.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Selection
        ``layer`` and ``position`` are None, with ``reasons``, if no candidate is admissible.

    Raises
    ------
    RequestError
        If the table lacks a score, a dim or a label, labels are not as said, or an option is out of
        range.

    Examples
    --------
    >>> import xarray as xr
    >>> dims, coords = ("position", "layer"), {"position": [-2, -1], "layer": [0, 1, 2, 3]}
    >>> table = xr.Dataset(
    ...     {
    ...         "bypass": (dims, [[0.0, -3.0, -9.0, -9.0], [1.0, -2.0, -5.0, -9.0]]),
    ...         "induce": (dims, [[0.0, 2.0, -1.0, 3.0], [0.0, 0.0, 4.0, 3.0]]),
    ...         "kl": (dims, [[0.0, 0.1, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0]]),
    ...     },
    ...     coords=coords,
    ... )
    >>> best = select(table)
    >>> best.position, best.layer, best.tallies
    (-2, 1, {'nan': 0, 'layer': 2, 'kl': 1, 'induce': 1})
    """
    if not tie_tolerance >= 0:
        raise RequestError(f"tie_tolerance is {tie_tolerance}; it must be 0 or more, in nats.")
    scores = as_dataset(scores)
    if model is not None:
        same_model("the score table", scores.attrs, model)
    table = checked_table(scores)
    n_layers = layers_of_model(scores)
    thresholds = checked_thresholds(kl_max, induce_min, layer_fraction)
    passed = _admissible(table, n_layers, thresholds)
    tallies = {str(name): int((~passed["passes"].sel(filter=name)).sum()) for name in FILTERS}
    common: dict[str, Any] = {
        "admissible": passed,
        "tallies": tallies,
        "n_layers": n_layers,
        "thresholds": thresholds,
        "table": table,
        "used": used([scores]),
    }
    ranked = _ranked(table, passed["admissible"].values)
    if not ranked.sizes["candidate"]:
        return Selection(**common, reasons=_reasons(tallies, common))
    best = ranked.isel(candidate=0)
    chosen = {dim: int(best[dim]) for dim in TABLE}
    common |= chosen | {name: float(best[name]) for name in SCORES}
    if "direction" in scores:
        common["direction"] = scores["direction"].sel(chosen)
    ties = near_ties(scores, ranked, tie_tolerance, confidence, seed)
    return Selection(**common, near_ties=ties)


def _admissible(table: xr.Dataset, n_layers: int, thresholds: dict[str, float]) -> xr.Dataset:
    first_late = first_late_layer(thresholds["layer_fraction"], n_layers)
    late = np.broadcast_to(table["layer"].values >= first_late, table["bypass"].shape)
    # thresholds are compared in the precision of the table, so that a float32 .1 equals .1
    passes = {
        "nan": ~np.logical_or.reduce([np.isnan(table[name].values) for name in SCORES]),
        "layer": ~late,
        "kl": ~(table["kl"].values > thresholds["kl_max"]),
        "induce": ~(table["induce"].values < thresholds["induce_min"]),
    }
    stacked = np.stack([passes[name] for name in FILTERS])
    return xr.Dataset(
        {
            "admissible": (TABLE, stacked.all(axis=0)),
            "passes": (("filter", *TABLE), stacked),
        },
        coords={**table.coords, "filter": np.array(FILTERS, dtype=object)},
        attrs={"n_layers": n_layers, "first_late_layer": first_late},
    )


def _ranked(table: xr.Dataset, passed: NDArray[np.bool_]) -> xr.Dataset:
    """The admissible candidates over ``candidate``, best first."""
    flat = table.stack(candidate=TABLE, create_index=False).isel(candidate=passed.ravel())
    return flat.isel(candidate=np.lexsort((flat["layer"], flat["position"], flat["bypass"])))


def _reasons(tallies: dict[str, int], common: dict[str, Any]) -> tuple[str, ...]:
    n = int(common["admissible"]["admissible"].size)
    if n == 0:
        return ("The score table holds no candidates.",)
    first_late = common["admissible"].attrs["first_late_layer"]
    limits = common["thresholds"]
    said = {
        "nan": "have a score that is NaN (not measured)",
        "layer": f"are from layer {first_late} on ({limits['layer_fraction']:g} of "
        f"{common['n_layers']} layers)",
        "kl": f"have KL above {limits['kl_max']:g}",
        "induce": f"have an induce score below {limits['induce_min']:g}",
    }
    return (
        f"None of {n} candidates is admissible.",
        *(f"{tallies[name]} {said[name]}." for name in FILTERS if tallies[name]),
    )
