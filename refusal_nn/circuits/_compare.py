"""Circuits beside each other: shared edges, shared ranking, and what one does on another's pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import stats as scipy_stats

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import top
from refusal_nn.circuits._evaluate import ABLATED, MODEL, bench_of, bounded, check_unseen
from refusal_nn.circuits._faithfulness import FRACTIONS, faithfulness
from refusal_nn.circuits._measure import measure
from refusal_nn.circuits._nulls import NULLS, strata
from refusal_nn.errors import RequestError
from refusal_nn.stats import adjust

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.models._graph import Graph
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder


def compare(circuits: Mapping[str, Circuit]) -> xr.Dataset:
    """Overlap of circuits of one model, two by two; no pass of the model.

    Parameters
    ----------
    circuits : mapping
        Name to circuit; all of one graph.

    Returns
    -------
    xarray.Dataset
        Over ``(circuit, other)``: ``iou`` of edges and ``node_iou`` of nodes; where both have
        scores, ``rank_correlation`` (Spearman, of their sizes) and ``rank_overlap`` (rank-biased
        overlap of edges by size, weighted to the depth of the larger circuit). ``iou_at`` adds
        ``fraction``: of the largest edges, whatever the circuits keep. ``overlap_p`` adds ``null``:
        chance that circuits drawn at random, each of its own size or its own size between any two
        layers, share as many edges; Holm-adjusted over pairs of circuits. ``edges_kept``
        ``(circuit)``.

    Raises
    ------
    RequestError
        If there are fewer than two circuits, or they are of different graphs.

    Notes
    -----
    Circuits can do the same with few edges in common (Meloux et al. 2025), so low overlap does not
    show different mechanisms: see :func:`cross_faithfulness`.

    References
    ----------
    Webber et al. 2010, ACM TOIS 28 (rank-biased overlap).
    """
    names = list(circuits)
    graph = _one_graph(circuits)
    n = len(names)
    edge, node = np.eye(n), np.eye(n)
    correlation, ranked = np.full((n, n), np.nan), np.full((n, n), np.nan)
    at = np.full((len(FRACTIONS), n, n), np.nan)
    p = np.full((len(NULLS), n, n), np.nan)
    for i, first in enumerate(circuits.values()):
        for j, second in enumerate(circuits.values()):
            edge[i, j] = _iou(first.kept, second.kept)
            node[i, j] = _iou(_node_mask(first), _node_mask(second))
            if i != j:
                p[:, i, j] = [overlap_p(graph, first.kept, second.kept, kind=k) for k in NULLS]
            if first.scores is None or second.scores is None:
                continue
            a, b = np.abs(first.scores[graph.mask]), np.abs(second.scores[graph.mask])
            correlation[i, j] = scipy_stats.spearmanr(a, b).statistic
            ranked[i, j] = rank_overlap(a, b, depth=max(first.n_kept, second.n_kept, 1))
            for f, fraction in enumerate(FRACTIONS):
                size = max(1, int(fraction * graph.n_edges))
                tops = [top(graph, np.abs(c.scores), size) for c in (first, second)]  # type: ignore[arg-type]
                at[f, i, j] = _iou(*tops)
    for k in range(len(NULLS)):
        above = np.triu_indices(n, 1)
        p[k][above] = adjust(p[k][above], "holm")
        p[k].T[above] = p[k][above]
    both = ("circuit", "other")
    return xr.Dataset(
        {
            "iou": (both, edge),
            "node_iou": (both, node),
            "rank_correlation": (both, correlation),
            "rank_overlap": (both, ranked),
            "iou_at": (("fraction", *both), at),
            "overlap_p": (("null", *both), p),
            "edges_kept": ("circuit", [c.n_kept for c in circuits.values()]),
        },
        coords={
            "circuit": np.array(names, dtype=object),
            "other": np.array(names, dtype=object),
            "fraction": list(FRACTIONS),
            "null": np.array(NULLS, dtype=object),
        },
        attrs={**graph.to_attrs(), "n_total": graph.n_edges},
    )


def cross_faithfulness(
    model: Model,
    circuits: Mapping[str, Circuit],
    pairs: Mapping[str, Pairs],
    metric: Metric,
    *,
    ablation: str = "resample",
    discovery: Pairs | None = None,
    confidence: float = 0.95,
    n_resamples: int = 9999,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """Faithfulness and completeness of every circuit on every set of pairs.

    Parameters
    ----------
    model : Model
    circuits : mapping
        Name to circuit.
    pairs : mapping
        Name to held-out pairs, of one task each.
    metric, ablation, discovery, confidence, n_resamples, batch_size, seed, recorder
        See :func:`refusal_nn.circuits.evaluate`.

    Returns
    -------
    xarray.Dataset
        ``faithfulness`` and ``completeness`` ``(circuit, pairs)`` with ``_low`` and ``_high``.

    Raises
    ------
    RequestError, PromptError
        As :func:`refusal_nn.circuits.evaluate`.
    """
    for circuit in circuits.values():
        circuit.check(model)
        for some in pairs.values():
            check_unseen(circuit, some)
    kept = [c.kept for c in circuits.values()] + [c.complement.kept for c in circuits.values()]
    names = [*circuits, *(f"complement of {name}" for name in circuits)]
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for k, some in enumerate(pairs.values()):
        bench = bench_of(
            model,
            some,
            metric,
            ablation=ablation,
            discovery=discovery,
            batch_size=batch_size,
            recorder=recorder,
        )
        mask = bench.graph.mask
        table = measure(
            bench, f"pairs{k}", [mask, np.zeros_like(mask), *kept], [MODEL, ABLATED, *names]
        )
        found = faithfulness(
            table[2:].T,
            table[0],
            table[1],
            cluster=some.family,
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
        )
        n = len(circuits)
        for what, part in (("faithfulness", slice(0, n)), ("completeness", slice(n, None))):
            for key, (_, values) in bounded(what, (), found).items():
                columns.setdefault(key, []).append(values[part])
    return xr.Dataset(
        {key: (("circuit", "pairs"), np.stack(values, axis=1)) for key, values in columns.items()},
        coords={
            "circuit": np.array(list(circuits), dtype=object),
            "pairs": np.array(list(pairs), dtype=object),
        },
        attrs={**metric.to_attrs(), "ablation": ablation},
    )


def overlap_p(
    graph: Graph, first: NDArray[np.bool_], second: NDArray[np.bool_], *, kind: str = "random"
) -> float:
    """Chance that two random circuits of these sizes share as many edges or more, exactly.

    ``random``: hypergeometric. ``layer-matched``: the sum of one hypergeometric draw for each pair of
    layers and kinds of node, each with the sizes that the circuits have there.
    """
    level = strata(graph, kind)
    distribution = np.ones(1)
    for stratum in np.unique(level[graph.mask]):
        here = graph.mask & (level == stratum)
        a, b, total = int((first & here).sum()), int((second & here).sum()), int(here.sum())
        chance = scipy_stats.hypergeom(total, a, b).pmf(np.arange(min(a, b) + 1))
        distribution = np.convolve(distribution, chance)
    shared = int((first & second).sum())
    return min(1.0, float(distribution[shared:].sum()))


def rank_overlap(a: NDArray[np.float64], b: NDArray[np.float64], *, depth: int) -> float:
    """Rank-biased overlap of two full rankings of the same items, 0 to 1.

    The weight of a rank falls geometrically with mean ``depth``; ties keep the items' order.

    Examples
    --------
    >>> import numpy as np
    >>> rank_overlap(np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 1.0]), depth=2)
    1.0
    """
    n = len(a)
    rank = [np.empty(n, dtype=int), np.empty(n, dtype=int)]
    for place, values in zip(rank, (a, b), strict=True):
        place[np.argsort(-values, kind="stable")] = np.arange(n)
    # an item is shared from the later of its two ranks on
    shared = np.cumsum(np.bincount(np.maximum(*rank), minlength=n))
    agreement = shared / np.arange(1, n + 1)
    persistence = 1 - 1 / max(depth, 2)
    weights = (1 - persistence) * persistence ** np.arange(n)
    return min(1.0, float(agreement @ weights + persistence**n))


def _one_graph(circuits: Mapping[str, Any]) -> Graph:
    if len(circuits) < 2:
        raise RequestError(f"comparing needs at least two circuits, got {len(circuits)}.")
    first_name, first = next(iter(circuits.items()))
    for name, circuit in circuits.items():
        if circuit.graph != first.graph:
            raise RequestError(
                f"circuits {first_name!r} and {name!r} are of different graphs; compare circuits of one "
                "model."
            )
    graph: Graph = first.graph
    return graph


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else math.nan


def _node_mask(circuit: Circuit) -> NDArray[np.bool_]:
    return np.isin(circuit.graph.src, circuit.nodes)
