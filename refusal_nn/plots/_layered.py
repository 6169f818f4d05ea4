"""Layered placement of an acyclic graph: rows given, order and x chosen for few crossings.

The method of Sugiyama, Tagawa and Toda 1981: an edge over several rows is broken at each of them,
the order within rows is improved by barycentres, and places are then the least-squares ones that
keep the order and the distances. Nothing is drawn at random, so the same graph is placed the same.

References
----------
Sugiyama, Tagawa and Toda 1981; Gansner et al. 1993 (weights that keep long edges straight).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

import numpy as np

SWEEPS = 24
STRAIGHTENINGS = 60

LONG = 6.0
"""How much more a long edge pulls on its own way points than on a node."""


def place(
    rows: Mapping[Hashable, int],
    widths: Mapping[Hashable, float],
    edges: Sequence[tuple[Hashable, Hashable]],
    *,
    lane: float,
) -> tuple[dict[Hashable, float], list[list[tuple[int, float]]]]:
    """Where nodes stand and which way edges go.

    Parameters
    ----------
    rows : mapping
        Row of each node, 0 lowest.
    widths : mapping
        Width of each node, the space it needs beside it included.
    edges : sequence of (lower, upper)
        Each from a lower row to a higher one.
    lane : float
        Width kept free for an edge that passes a row.

    Returns
    -------
    x : dict
        Centre of each node.
    ways : list of list of (row, x)
        For each edge the rows between its ends and where it passes them.

    Examples
    --------
    >>> x, ways = place({"a": 0, "b": 1, "c": 2}, dict.fromkeys("abc", 1.0),
    ...                 [("a", "b"), ("b", "c"), ("a", "c")], lane=0.5)
    >>> [[row for row, _ in way] for way in ways]
    [[], [], [1]]
    """
    row, width = list(rows.values()), [widths[node] for node in rows]
    index = {node: i for i, node in enumerate(rows)}
    links: list[tuple[int, int]] = []
    ways = []
    for lower, upper in edges:
        passed = range(rows[lower] + 1, rows[upper])
        way = range(len(row), len(row) + len(passed))
        row += passed
        width += [lane] * len(passed)
        links += pairwise([index[lower], *way, index[upper]])
        ways.append(way)
    layers = _ordered(row, links)
    x = _straightened(width, links, layers, n_nodes=len(index))
    return (
        {node: float(x[i]) for node, i in index.items()},
        [[(row[i], float(x[i])) for i in way] for way in ways],
    )


def _ordered(row: list[int], links: list[tuple[int, int]]) -> list[list[int]]:
    """Items of every row from left to right: the order with the fewest crossings that sweeps find."""
    below: list[list[int]] = [[] for _ in row]
    above: list[list[int]] = [[] for _ in row]
    for lower, upper in links:
        below[upper].append(lower)
        above[lower].append(upper)
    layers = [np.flatnonzero(np.array(row) == k).tolist() for k in range(max(row, default=-1) + 1)]
    best, fewest = [list(layer) for layer in layers], _crossings(row, links, layers)
    for sweep in range(SWEEPS):
        upward = sweep % 2 == 0
        near = below if upward else above
        for layer in layers[1:] if upward else layers[-2::-1]:
            # places in rows of any length are compared as shares of the row
            at = {i: (k + 0.5) / len(other) for other in layers for k, i in enumerate(other)}
            centre = {
                i: float(np.mean([at[j] for j in near[i]])) if near[i] else at[i] for i in layer
            }
            layer.sort(key=lambda i: (centre[i], at[i], i))
        crossings = _crossings(row, links, layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _crossings(row: list[int], links: list[tuple[int, int]], layers: list[list[int]]) -> int:
    rank = {i: k for layer in layers for k, i in enumerate(layer)}
    by_row: dict[int, list[tuple[int, int]]] = {}
    for lower, upper in links:
        by_row.setdefault(row[lower], []).append((rank[lower], rank[upper]))
    total = 0
    for pairs in by_row.values():
        ends = np.array(pairs)
        left = np.sign(ends[:, None, 0] - ends[None, :, 0])
        right = np.sign(ends[:, None, 1] - ends[None, :, 1])
        total += int((left * right < 0).sum()) // 2
    return total


def _straightened(
    widths: list[float], links: list[tuple[int, int]], layers: list[list[int]], *, n_nodes: int
) -> np.ndarray:
    """The x of every item: least squares to its neighbours, order and distances kept."""
    from scipy.optimize import isotonic_regression
    from scipy.sparse import csr_array

    n = len(widths)
    lower, upper = np.array(links, dtype=int).reshape(-1, 2).T
    weight = LONG ** ((lower >= n_nodes).astype(int) + (upper >= n_nodes))
    ends = (np.concatenate([lower, upper]), np.concatenate([upper, lower]))
    pull = csr_array((np.concatenate([weight, weight]), ends), shape=(n, n))
    total = pull.sum(axis=1)
    width, x, offsets = np.array(widths), np.zeros(n), []
    for layer in layers:
        half = width[layer] / 2
        offset = np.concatenate([[0.0], np.cumsum(half[:-1] + half[1:])])
        x[layer] = offset - offset[-1] / 2
        offsets.append(offset)
    pulls = [pull[layer] for layer in layers]
    for turn in range(STRAIGHTENINGS):
        order = range(len(layers)) if turn % 2 == 0 else range(len(layers) - 1, -1, -1)
        for row in order:
            layer = layers[row]
            free = total[layer] == 0
            weights = np.where(free, 1e-3, total[layer])
            wanted = np.where(free, x[layer], pulls[row] @ x / weights)
            # distances become an order once each item's least distance is taken off
            found = isotonic_regression(wanted - offsets[row], weights=weights)
            x[layer] = found.x + offsets[row]
    return x
