"""Seeded circuits and pairs, for tests of what is done with them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import choose
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.prompts import Pairs

GRAPHS = {
    "plain": EdgeGraph(n_layers=3, n_heads=2, n_kv_heads=2),
    "grouped": EdgeGraph(n_layers=3, n_heads=4, n_kv_heads=2),
    "one key-value head": EdgeGraph(n_layers=2, n_heads=3, n_kv_heads=1),
    "parallel": EdgeGraph(n_layers=3, n_heads=2, n_kv_heads=2, parallel=True),
}
"""Small graphs of every shape: plain, grouped queries, one key-value head, parallel blocks."""


def random_circuit(graph: EdgeGraph, *, n: int = 30, seed: int = 0, **attrs: Any) -> Circuit:
    """The ``n`` best edges of random scores that favour some nodes, dead ends pruned.

    Examples
    --------
    >>> random_circuit(GRAPHS["plain"])
    <Circuit: 13 of 100 edges, 5 nodes>
    """
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 1, len(graph.src))[:, None] * rng.lognormal(0, 1, len(graph.dst))
    scores = np.where(graph.mask, rng.normal(0, 1, graph.mask.shape) * size, np.nan)
    known = {"model": "random", "weights_hash": "ab" * 32, "d_model": 16, "metric": "projection"}
    return Circuit(graph, choose(graph, scores, n=n, rule="greedy"), scores, {**known, **attrs})


def random_pairs(n: int = 3, words: tuple[int, ...] = (4,), seed: int = 0) -> Pairs:
    """``n`` pairs of the tiny models' words that differ in two; lengths from ``words`` in turn.

    Examples
    --------
    >>> random_pairs(2, words=(4, 5)).clean.texts
    ['w61 w65 w17 w45', 'w57 w86 w39 w76 w29']
    """
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        length = words[i % len(words)]
        clean = [f"w{rng.randrange(12, 97)}" for _ in range(length)]
        corrupted = [*clean]
        for k in rng.sample(range(length), 2):
            corrupted[k] = f"w{rng.randrange(12, 97)}"
        labels = {"category": "made", "split": "test", "family": f"pair-{i}"}
        rows.append({"clean": " ".join(clean), "corrupted": " ".join(corrupted), **labels})
    return Pairs.from_rows(rows, name="made")
