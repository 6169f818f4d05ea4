"""Random circuits of equal size, and how often they do as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from refusal_nn.attribution import EdgeGraph

NULLS = ("random", "layer-matched")


def random_circuits(
    graph: EdgeGraph, kept: NDArray[np.bool_], n: int, *, kind: str = "random", seed: int = 0
) -> NDArray[np.bool_]:
    """Circuits with as many edges as a given one, drawn at random.

    Parameters
    ----------
    graph : EdgeGraph
    kept : array, ``[src, dst]`` bool
        The circuit they are matched to.
    n : int
        How many.
    kind : {"random", "layer-matched"}
        ``random``: any edges. ``layer-matched``: from each layer to each layer and kind of reader
        (attention, MLP, logits) and from each kind of writer, as many as the circuit has there.
    seed : int

    Returns
    -------
    array, ``[draw, src, dst]`` bool
        Not pruned: each has exactly as many edges as the circuit.

    Raises
    ------
    RequestError
        If the kind is unknown or no draws are asked for.
    """
    level = strata(graph, kind)
    if n < 1:
        raise RequestError(f"{n} random circuits were asked for; at least 1 is needed.")
    rng = np.random.default_rng([seed, NULLS.index(kind)])
    draws = np.zeros((n, graph.mask.size), dtype=bool)
    for stratum in np.unique(level[kept]):
        edges = np.flatnonzero(graph.mask & (level == stratum))
        k = int((kept & (level == stratum)).sum())
        # the k smallest of independent uniforms are a uniform subset
        ranks = np.argsort(rng.random((n, len(edges))), axis=1)[:, :k]
        draws[np.arange(n)[:, None], edges[ranks]] = True
    return draws.reshape(n, *graph.mask.shape)


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


def strata(graph: EdgeGraph, kind: str) -> NDArray[np.int_]:
    """``[src, dst]``: edges of one number are drawn from each other's place.

    Raises
    ------
    RequestError
        If the kind is unknown.
    """
    if kind not in NULLS:
        raise RequestError(f"unknown null {kind!r}; nulls are {', '.join(NULLS)}.")
    if kind == "random":
        return np.zeros(graph.mask.shape, dtype=int)
    per_src, per_dst = graph.writers_per_layer, graph.readers_per_layer
    src = np.arange(len(graph.src)) - 1
    writer = 2 * (src // per_src + 1) + (src % per_src == per_src - 1)
    writer[0] = 0
    dst = np.arange(len(graph.dst))
    reader = 2 * (dst // per_dst) + (dst % per_dst == per_dst - 1)
    return np.asarray(writer[:, None] * (reader.max() + 1) + reader[None, :], dtype=int)
