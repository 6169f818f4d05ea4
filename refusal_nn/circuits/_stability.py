"""How much a circuit depends on the prompts it was found on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.attribution._summary import family_sums
from refusal_nn.circuits._circuit import PROVENANCE, Circuit
from refusal_nn.circuits._discover import choose, mean_scores, prompt_scores, ranked, supporting
from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.models._graph import Graph

_BYTES = 1 << 28
_EDGES = 1 << 16


def stability(
    scores: xr.Dataset,
    circuit: Circuit,
    *,
    n_resamples: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Circuits of resampled prompts, from stored scores: no pass of the model.

    Families of prompts are drawn with replacement; each resample's scores are averaged and a circuit
    of the same rule, ranking and requested size is taken from them.

    Parameters
    ----------
    scores : xarray.Dataset
        ``edge_score`` ``(prompt, src, dst)``, with coord ``family`` where prompts are not
        independent.
    circuit : Circuit
        Found from these scores with :func:`refusal_nn.circuits.discover`: its attrs say how.
    n_resamples : int
        100 or more are asked for in the literature.
    seed : int

    Returns
    -------
    xarray.Dataset
        ``inclusion`` ``(src, dst)``: share of resamples that keep an edge, NaN where there is none.
        ``jaccard``: mean overlap of two resamples' circuits; ``jaccard_low`` and ``_high``: its 2.5
        and 97.5 % quantiles over pairs of resamples, a spread and not an interval of the mean. A
        circuit is called stable above .8 (Meloux et al.). ``edges_kept`` ``(draw)``.

    Raises
    ------
    RequestError
        If there is one family only, or fewer than two resamples.

    References
    ----------
    Meloux et al. 2025, arXiv:2510.00845.
    """
    graph, table = prompt_scores(scores)
    mean_scores(scores)  # refuses gaps
    if n_resamples < 2:
        raise RequestError(f"stability needs at least 2 resamples, got {n_resamples}.")
    family = scores["family"].values if "family" in scores.coords else np.arange(len(table))
    names, code = np.unique(np.array([str(f) for f in family]), return_inverse=True)
    if len(names) < 2:
        raise RequestError(
            "the scores are of one family of prompts, so there is nothing to resample; attribute pairs "
            "of more families, or leave the resamples out (--resamples 0)."
        )
    rng = np.random.default_rng(seed)
    times = np.stack(
        [
            np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            for _ in range(n_resamples)
        ]
    )
    metric = str(scores.attrs.get("metric"))
    drawn = np.stack(
        [_like(circuit, graph, supporting(m, metric)) for m in _resampled(table, code, times)]
    )
    inclusion = np.where(graph.mask, drawn.mean(0), np.nan)
    overlap = jaccard(drawn)
    # where two resamples leave nothing they neither agree nor differ
    known = overlap[np.isfinite(overlap)]
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
    return xr.Dataset(
        {
            "inclusion": (("src", "dst"), inclusion),
            "jaccard": float(known.mean()) if known.size else np.nan,
            "jaccard_low": float(low),
            "jaccard_high": float(high),
            "edges_kept": ("draw", drawn.sum((1, 2))),
        },
        coords={"src": graph.src, "dst": graph.dst, "draw": np.arange(n_resamples)},
        attrs={
            **{k: v for k, v in circuit.attrs.items() if k in PROVENANCE},
            **graph.to_attrs(),
            "n_resamples": n_resamples,
            "seed": seed,
            "resampled": "families",
        },
    )


def consensus(found: xr.Dataset, circuit: Circuit, *, share: float = 0.9) -> Circuit:
    """The edges that at least a share of resamples keep, as a circuit; not pruned.

    Parameters
    ----------
    found : xarray.Dataset
        From :func:`stability`.
    circuit : Circuit
        Its scores and attrs are kept.
    share : float
        In (0, 1]; 1 is the strict consensus.

    Raises
    ------
    RequestError
        If the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise RequestError(f"a consensus of {share} is asked for; give a share in (0, 1].")
    kept = np.nan_to_num(found["inclusion"].values) >= share
    return Circuit(circuit.graph, kept, circuit.scores, {**circuit.attrs, "consensus": share})


def jaccard(kept: np.ndarray) -> np.ndarray:
    """Intersection over union of every two of ``[draw, src, dst]`` circuits, ``[pair]``."""
    return np.asarray(iou(kept)[np.triu_indices(len(kept), 1)])


def iou(kept: np.ndarray) -> np.ndarray:
    """Intersection over union of ``[draw, ...]`` sets, each with each, ``[draw, draw]``.

    NaN for two empty sets, which have nothing to share.
    """
    flat = kept.reshape(len(kept), -1)
    both = np.zeros((len(kept), len(kept)))
    for first in range(0, flat.shape[1], _EDGES):
        part = flat[:, first : first + _EDGES].astype(np.float64)
        both += part @ part.T
    size = np.diag(both)
    union = size[:, None] + size[None, :] - both
    return np.divide(both, union, out=np.full_like(both, np.nan), where=union > 0)


def _resampled(
    table: xr.DataArray, code: NDArray[np.int_], times: NDArray[np.int_]
) -> Iterator[NDArray[np.float64]]:
    """Mean scores ``[src, dst]`` of each resample, read for some of them and some families at a time.

    Parameters
    ----------
    table : xarray.DataArray
        Over ``(prompt, src, dst)``; may lie on disk.
    code : array of int, ``[prompt]``
        Number of the family.
    times : array of int, ``[resample, family]``
        How often a family was drawn.
    """
    counts = np.bincount(code).astype(float)
    at_once, families = (max(1, n // (8 * table[0].size)) for n in (_BYTES, _BYTES // 4))
    for first in range(0, len(times), at_once):
        some = times[first : first + at_once]
        totals = np.zeros((len(some), *table.shape[1:]))
        sums = family_sums(table, code)
        for start in range(0, len(counts), families):
            block = np.stack([*islice(sums, families)])
            for total, weights in zip(totals, some[:, start : start + families], strict=True):
                total += np.tensordot(weights, block, 1)
        yield from (total / (w @ counts) for total, w in zip(totals, some, strict=True))


def _like(circuit: Circuit, graph: Graph, worth: np.ndarray) -> np.ndarray:
    """A circuit made as another was, from other scores."""
    rule, ranking = str(circuit.attrs.get("rule")), str(circuit.attrs.get("ranking"))
    n = int(circuit.attrs.get("requested", circuit.n_kept))
    if rule == "threshold":
        n = int((ranked(worth, ranking) >= circuit.attrs["threshold"]).sum())
    return choose(graph, worth, n=n, rule=rule, ranking=ranking)
