"""From edge scores to a circuit: rank, take, prune."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.attribution._summary import each, mean
from refusal_nn.circuits._circuit import (
    FOUND_FAMILIES,
    FOUND_PAIRS,
    PROVENANCE,
    SCORED,
    Circuit,
)
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import Graph, graph_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

RULES = ("top", "greedy", "threshold")
RANKINGS = ("absolute", "signed")


def discover(
    scores: xr.Dataset,
    *,
    edges: int | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    rule: str = "top",
    ranking: str = "absolute",
) -> Circuit:
    """The circuit of the best edges.

    Parameters
    ----------
    scores : xarray.Dataset
        From :func:`refusal_nn.attribution.attribute`: ``edge_score`` ``(prompt, src, dst)``; scores
        are averaged over prompts.
    edges : int, optional
        How many edges to ask for.
    fraction : float, optional
        The same as a fraction of all edges, rounded down.
    threshold : float, optional
        For ``rule="threshold"``: keep edges that score at least this, in the metric's unit a prompt.
    rule : {"top", "greedy", "threshold"}
        ``top``: the best edges wherever they are. ``greedy``: from the logits up, each time the best
        edge into a node that is in already, so nothing dangles at the logits' end.
    ranking : {"absolute", "signed"}
        By size of the effect, or by how much an edge supports the metric: with ``signed``, edges
        that work against it come last.

    Returns
    -------
    Circuit
        Dead ends are pruned, so it may have fewer edges than asked for: ``attrs["requested"]`` and
        ``n_kept`` say both.

    Raises
    ------
    RequestError
        If not exactly one size fits the rule, nothing is left after pruning, or the scores are not
        edge scores.

    References
    ----------
    Hanna et al. 2024 (EAP-IG), whose top-n, greedy and pruning these are.
    """
    graph, found = mean_scores(scores)
    worth = supporting(found, str(scores.attrs.get("metric")))
    rank = ranked(worth, ranking)
    n = _requested(graph, rank, edges, fraction, threshold, rule)
    kept = choose(graph, worth, n=n, rule=rule, ranking=ranking)
    if not kept.any():
        raise RequestError(_nothing_left(graph, rank, rule, n))
    told = (*SCORED, *PROVENANCE)
    attrs: dict[str, Any] = {
        k: v for k, v in scores.attrs.items() if k in told or str(k).startswith("metric")
    }
    attrs |= {"rule": rule, "ranking": ranking, "requested": n}
    if threshold is not None:
        attrs["threshold"] = float(threshold)
    for name, label in ((FOUND_PAIRS, "prompt_id"), (FOUND_FAMILIES, "family")):
        if label in scores.coords:
            attrs[name] = sorted({str(v) for v in np.atleast_1d(scores[label].values)})
    return Circuit(graph, kept, found, attrs)


def choose(
    graph: Graph,
    worth: NDArray[np.float64],
    *,
    n: int,
    rule: str = "top",
    ranking: str = "absolute",
) -> NDArray[np.bool_]:
    """The pruned circuit of ``n`` edges by scores ``[src, dst]``, higher = supports more."""
    return prune(graph, first(graph, taken(graph, ranked(worth, ranking), rule, n), n))


def taken(
    graph: Graph, rank: NDArray[np.float64], rule: str, n: int | None = None
) -> NDArray[np.int_]:
    """Edges in the order a rule takes them, ``[edge]`` into the flattened ``[src, dst]``.

    The ``n`` first, or all of them, are a circuit before pruning. A threshold takes them as ``top``.

    Raises
    ------
    RequestError
        If the rule is unknown.
    """
    if rule not in RULES:
        raise RequestError(f"unknown rule {rule!r}; rules are {', '.join(RULES)}.")
    if rule == "greedy":
        return _greedy(graph, rank, graph.n_edges if n is None else n)
    at = np.flatnonzero(graph.mask.ravel())
    return np.asarray(at[np.argsort(-rank.ravel()[at], kind="stable")])


def first(graph: Graph, order: NDArray[np.int_], n: int) -> NDArray[np.bool_]:
    """The ``n`` first edges of an order, ``[src, dst]``."""
    kept = np.zeros(graph.mask.size, dtype=bool)
    kept[order[:n]] = True
    return kept.reshape(graph.mask.shape)


def least(graph: Graph, order: NDArray[np.int_], size: int) -> int:
    """How many first edges of an order have to be taken for ``size`` of them to be left, pruned.

    More edges taken are never fewer left, so it is found by halving.
    """
    low, high = min(size, len(order)), len(order)
    while low < high:
        middle = (low + high) // 2
        if int(prune(graph, first(graph, order, middle)).sum()) >= size:
            high = middle
        else:
            low = middle + 1
    return low


def prune(graph: Graph, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without edges that lead nowhere or come from nowhere, to a fixpoint.

    A writer stays while something reads it and, the embedding apart, one of its readers reads
    something; a reader stays while a writer it is part of does.
    """
    left: NDArray[np.bool_] = kept.copy()
    while True:
        kept = left
        writing = alive(graph, kept)[:, None]
        reading = np.asarray((graph.belongs & writing).any(0))
        reading[-1] = True
        left = kept & writing & reading
        if left.sum() == kept.sum():
            return left


def alive(graph: Graph, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Writers that an edge leaves and, the embedding apart, an edge enters, ``[src]``."""
    fed = np.asarray((graph.belongs & kept.any(0)).any(1))
    fed[0] = True
    return np.asarray(fed & kept.any(1))


def mean_scores(scores: xr.Dataset) -> tuple[Graph, NDArray[np.float64]]:
    """The graph of edge scores, and their mean over prompts ``[src, dst]``.

    Raises
    ------
    RequestError
        If they are no edge scores, or an edge has none.
    """
    graph, table = prompt_scores(scores)
    found = mean(table)
    if np.isnan(found[graph.mask]).any():
        unscored = sum(int(np.isnan(values[graph.mask]).sum()) for values in each(table))
        raise RequestError(
            f"{unscored} of the edges' scores are missing; attribute all edges before choosing some."
        )
    return graph, found


def prompt_scores(scores: xr.Dataset) -> tuple[Graph, xr.DataArray]:
    """The graph of edge scores, and the scores of each prompt ``(prompt, src, dst)``, unread.

    Raises
    ------
    RequestError
        If they are no edge scores.
    """
    if "edge_score" not in scores or {"src", "dst"} - set(scores["edge_score"].dims):
        held = ", ".join(map(str, scores)) or "nothing"
        raise RequestError(
            f"the scores hold no variable 'edge_score' (they hold {held}); attribute with level='edge'."
        )
    graph = graph_of(scores.attrs)
    table = scores["edge_score"]
    if "prompt" not in table.dims:
        table = table.expand_dims("prompt")
    table = table.transpose("prompt", "src", "dst")
    if table.shape[1:] != graph.mask.shape:
        raise RequestError(
            f"the scores have shape {table.shape[1:]} (src, dst), but their graph has "
            f"{graph.mask.shape}."
        )
    return graph, table


def supporting(scores: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Scores turned so that higher means the edge supports the behaviour.

    A score is the change of the metric when the edge is corrupted, so an edge supports a metric of
    refusal when its score is negative; and KL from the clean run, which corruption raises, when it
    is positive.
    """
    return scores if metric == "kl" else -scores


def ranked(worth: NDArray[np.float64], ranking: str) -> NDArray[np.float64]:
    if ranking not in RANKINGS:
        raise RequestError(f"unknown ranking {ranking!r}; rankings are {', '.join(RANKINGS)}.")
    return np.abs(worth) if ranking == "absolute" else worth


def _greedy(graph: Graph, rank: NDArray[np.float64], n: int) -> NDArray[np.int_]:
    """From the logits up: the best edge into what is in already, ``n`` times."""
    order: list[int] = []
    heap: list[tuple[float, int, int]] = []
    inside: set[int] = set()
    offered: set[int] = set()

    def offer(dst: int) -> None:
        offered.add(dst)
        for s in np.flatnonzero(graph.mask[:, dst]).tolist():
            heapq.heappush(heap, (-float(rank[s, dst]), s, dst))

    offer(len(graph.dst) - 1)
    while heap and len(order) < n:
        _, s, d = heapq.heappop(heap)
        order.append(s * len(graph.dst) + d)
        if s not in inside:
            inside.add(s)
            # heads that share a key-value head share its readers
            for reader in set(np.flatnonzero(graph.belongs[s]).tolist()) - offered:
                offer(reader)
    return np.array(order, dtype=int)


def _nothing_left(graph: Graph, rank: NDArray[np.float64], rule: str, requested: int) -> str:
    """Why a circuit is empty, and the smallest size or highest threshold that leaves something."""
    order = taken(graph, rank, rule)
    n = least(graph, order, 1)
    asked = "1 edge" if requested == 1 else f"{requested} edges"
    start = (
        f"no path from the input to the logits is among the {asked} taken, so pruning leaves none"
    )
    if rule == "threshold":
        highest = float(rank.ravel()[order[n - 1]])
        return f"{start}; a threshold of {highest:.6g} or less leaves some."
    return f"{start}; ask for {n} edges or more (of {graph.n_edges})."


def _requested(
    graph: Graph,
    rank: NDArray[np.float64],
    edges: int | None,
    fraction: float | None,
    threshold: float | None,
    rule: str,
) -> int:
    """How many edges to take, of as many as there are."""
    given = [name for name, v in (("edges", edges), ("fraction", fraction)) if v is not None]
    if rule == "threshold":
        if threshold is None or given:
            raise RequestError("rule 'threshold' takes a threshold and neither edges nor fraction.")
        if not np.isfinite(threshold):
            raise RequestError(f"the threshold is {threshold}; give a finite number.")
        return int((rank >= threshold).sum())
    if threshold is not None:
        raise RequestError(f"a threshold goes with rule 'threshold', not {rule!r}; set that rule.")
    if len(given) != 1:
        raise RequestError(f"rule {rule!r} takes exactly one of edges and fraction.")
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise RequestError(f"fraction {fraction} is not in (0, 1].")
        return size_of(graph, fraction)
    assert edges is not None
    if not 1 <= edges <= graph.n_edges:
        raise RequestError(f"{edges} edges were asked for, but the graph has 1 to {graph.n_edges}.")
    return edges


def size_of(graph: Graph, fraction: float) -> int:
    """Edges that a fraction of the graph is: rounded down, as in MIB."""
    return int(fraction * graph.n_edges)
