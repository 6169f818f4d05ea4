"""Circuits beside each other: shared edges, shared ranking, and what one does on another's pairs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from scipy import stats as scipy_stats

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import first, size_of, taken
from refusal_nn.circuits._evaluate import bounded
from refusal_nn.circuits._faithfulness import FRACTIONS, Scale
from refusal_nn.circuits._measure import Bench
from refusal_nn.circuits._nulls import NULLS, strata
from refusal_nn.circuits._stability import iou
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
    graph = _one_graph(circuits)
    names, every = np.array(list(circuits), dtype=object), list(circuits.values())
    n = len(every)
    correlation, ranked = np.full((n, n), np.nan), np.full((n, n), np.nan)
    at = np.full((len(FRACTIONS), n, n), np.nan)
    p = np.full((len(NULLS), n, n), np.nan)
    size = {i: np.abs(c.scores) for i, c in enumerate(every) if c.scores is not None}
    for i, j in product(size, repeat=2):
        a, b = size[i][graph.mask], size[j][graph.mask]
        correlation[i, j] = scipy_stats.spearmanr(a, b).statistic
        ranked[i, j] = rank_overlap(a, b, depth=max(every[i].n_kept, every[j].n_kept, 1))
    if size:
        order = [taken(graph, rank, "top") for rank in size.values()]
        for part, fraction in zip(at, FRACTIONS, strict=True):
            tops = [first(graph, one, max(1, size_of(graph, fraction))) for one in order]
            part[np.ix_(list(size), list(size))] = iou(np.stack(tops))
    above = np.triu_indices(n, 1)
    for k, kind in enumerate(NULLS):
        chance = [overlap_p(graph, a.kept, b.kept, kind=kind) for a, b in combinations(every, 2)]
        p[k][above] = adjust(chance, "holm")
        p[k].T[above] = p[k][above]
    both = ("circuit", "other")
    return xr.Dataset(
        {
            "iou": (both, iou(np.stack([c.kept for c in every]))),
            "node_iou": (both, iou(np.stack([np.isin(graph.src, c.nodes) for c in every]))),
            "rank_correlation": (both, correlation),
            "rank_overlap": (both, ranked),
            "iou_at": (("fraction", *both), at),
            "overlap_p": (("null", *both), p),
            "edges_kept": ("circuit", [c.n_kept for c in every]),
        },
        coords={
            "circuit": names,
            "other": names,
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
        circuit.check(model, *pairs.values())
    kept = [c.kept for c in circuits.values()] + [c.complement.kept for c in circuits.values()]
    names = [*circuits, *(f"complement of {name}" for name in circuits)]
    columns: dict[str, list[NDArray[np.float64]]] = {}
    for k, some in enumerate(pairs.values()):
        bench = Bench(model, some, metric, ablation, discovery, batch_size, recorder)
        table = bench.measure(f"pairs{k}", [*bench.ends.values(), *kept], [*bench.ends, *names])
        scale = Scale(
            *table[:2],
            cluster=some.family,
            confidence=confidence,
            n_resamples=n_resamples,
            seed=seed,
        )
        found = scale.faithfulness(table[2:])
        n = len(circuits)
        for what, part in (("faithfulness", slice(n)), ("completeness", slice(n, None))):
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


def _one_graph(circuits: Mapping[str, Circuit]) -> Graph:
    if len(circuits) < 2:
        raise RequestError(f"comparing needs at least two circuits, got {len(circuits)}.")
    (known, one), *others = circuits.items()
    for name, circuit in others:
        if circuit.graph != one.graph:
            raise RequestError(
                f"circuits {known!r} and {name!r} are of different graphs; compare circuits of one "
                "model."
            )
    return one.graph
