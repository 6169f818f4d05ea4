"""Random circuits of equal size, and how often they do as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refusal_nn.circuits._discover import first, least, prune, ranked, supporting, taken
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import Graph, dense

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from refusal_nn.circuits._circuit import Circuit

NULLS = ("random", "layer-matched")
_TRIES = 8


def random_circuits(
    circuit: Circuit, n: int, *, kind: str = "random", seed: int = 0
) -> NDArray[np.bool_]:
    """Circuits of a circuit's size, made as it was from scores that say nothing.

    A circuit that was discovered is made again, by its rule, from its own scores dealt out at random
    to other edges. One that was not (of named edges, of a file, a consensus) has no scores to deal
    out: edges are taken in a random order. Either way dead ends are pruned, and so many edges are
    taken that as many are left as of the pruned circuit: edges taken at random and not pruned would
    be dead ends for the most part, which any circuit beats.

    Parameters
    ----------
    circuit : Circuit
        The circuit they are matched to.
    n : int
        How many.
    kind : {"random", "layer-matched"}
        ``random``: scores are dealt out to any edges. ``layer-matched``: among edges from one layer
        and kind of writer (embedding, head, MLP) to one layer and kind of reader (attention, MLP,
        logits), so that such places get their scores back; without scores, the share of a place
        grows in proportion to the edges that the circuit has there.
    seed : int

    Returns
    -------
    array, ``[draw, src, dst]`` bool
        Pruned. A few miss the size by the edges that one more or less brings along.

    Raises
    ------
    RequestError
        If the kind is unknown or no draws are asked for.
    """
    check_nulls([kind], n)
    graph = circuit.graph
    level = strata(graph, kind)
    size = int(prune(graph, circuit.kept).sum())
    rule = str(circuit.attrs["rule"]) if _made_by_rule(circuit) else "top"
    rng = np.random.default_rng([seed, NULLS.index(kind)])
    drawn = np.zeros((n, *graph.mask.shape), dtype=bool)
    for i in range(n):
        missed = graph.n_edges + 1
        # one edge can revive several, so not every order passes through every size
        for _ in range(_TRIES):
            order = taken(graph, _at_random(circuit, level, rng), rule)
            found = _closest(graph, order, size)
            off = abs(int(found.sum()) - size)
            if off < missed:
                missed, drawn[i] = off, found
            if not off:
                break
    return drawn


def check_nulls(nulls: Sequence[str], draws: int) -> None:
    """Refuse kinds of random circuits that there are not, or twice, and no draws of them.

    Raises
    ------
    RequestError
    """
    if isinstance(nulls, str):
        raise RequestError(f"nulls is the text {nulls!r}; give a sequence such as [{nulls!r}].")
    for kind in nulls:
        if kind not in NULLS:
            raise RequestError(f"unknown null {kind!r}; nulls are {', '.join(NULLS)}.")
    if len(set(nulls)) < len(nulls):
        raise RequestError(f"a null is named twice in {', '.join(nulls)}; name each once.")
    if nulls and draws < 1:
        raise RequestError(f"{draws} random circuits were asked for; at least 1 is needed.")


def _made_by_rule(circuit: Circuit) -> bool:
    known = circuit.scores is not None and "rule" in circuit.attrs
    return known and "consensus" not in circuit.attrs


def _at_random(
    circuit: Circuit, level: NDArray[np.int_], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Ranks ``[src, dst]`` that say nothing about edges of one stratum; no two are equal."""
    graph = circuit.graph
    value = np.full(graph.mask.size, np.nan)
    known = None
    if _made_by_rule(circuit):
        assert circuit.scores is not None
        worth = supporting(circuit.scores, str(circuit.attrs.get("metric")))
        known = ranked(worth, str(circuit.attrs.get("ranking", "absolute"))).ravel()
    flat, kept = level.ravel(), circuit.kept.ravel()
    for stratum in np.unique(flat[graph.mask.ravel()]):
        edges = np.flatnonzero(graph.mask.ravel() & (flat == stratum))
        if known is not None:
            value[edges] = rng.permutation(known[edges])
            continue
        # the r-th edge of a stratum of which the circuit keeps c is taken at time r / c
        share = int(kept[edges].sum())
        time = (rng.permutation(len(edges)) + rng.random(len(edges))) / max(share, 1)
        value[edges] = -time if share else -time - len(flat)
    # equal scores would be taken in the graph's order, which is not random
    at = np.flatnonzero(graph.mask.ravel())
    order = at[np.lexsort((rng.random(len(at)), -value[at]))]
    rank = np.full(graph.mask.size, np.nan)
    rank[order] = -np.arange(len(order), dtype=float)
    return rank.reshape(graph.mask.shape)


def _closest(graph: Graph, order: NDArray[np.int_], size: int) -> NDArray[np.bool_]:
    """The pruned circuit of an order's first edges whose size is closest; of two, the larger."""
    if size < 1:
        return np.zeros(graph.mask.shape, dtype=bool)
    n = least(graph, order, size)
    above, below = (prune(graph, first(graph, order, k)) for k in (n, n - 1))
    nearer = size - int(below.sum()) < int(above.sum()) - size
    return below if nearer else above


def p_value(observed: float, null: ArrayLike) -> float:
    """``(1 + #{null >= observed}) / (1 + #null)``.

    References
    ----------
    Phipson and Smyth 2010: permutation p-values should never be zero.

    Examples
    --------
    >>> p_value(0.9, [0.1, 0.2, 0.95])
    0.5
    """
    values = np.asarray(null, dtype=float)
    return float((1 + (values >= observed).sum()) / (1 + values.size))


def strata(graph: Graph, kind: str) -> NDArray[np.int_]:
    """``[src, dst]``: edges of one number are drawn from each other's place."""
    if kind == "random":
        return np.zeros(graph.mask.shape, dtype=int)
    blocks = dense(graph)
    per_src, per_dst = blocks.writers_per_layer, blocks.readers_per_layer
    src = np.arange(len(graph.src)) - 1
    writer = 2 * (src // per_src + 1) + (src % per_src == per_src - 1)
    writer[0] = 0
    dst = np.arange(len(graph.dst))
    reader = 2 * (dst // per_dst) + (dst % per_dst == per_dst - 1)
    return np.asarray(writer[:, None] * (reader.max() + 1) + reader[None, :], dtype=int)
