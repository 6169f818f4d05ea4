"""Seeded circuits of every shape of graph, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import choose

GRAPHS = {
    "plain": EdgeGraph(n_layers=3, n_heads=2, n_kv_heads=2),
    "grouped": EdgeGraph(n_layers=3, n_heads=4, n_kv_heads=2),
    "one key-value head": EdgeGraph(n_layers=2, n_heads=3, n_kv_heads=1),
    "parallel": EdgeGraph(n_layers=3, n_heads=2, n_kv_heads=2, parallel=True),
}


def random_circuit(graph: EdgeGraph, *, n: int = 30, seed: int = 0, **attrs: Any) -> Circuit:
    """The best edges of random scores that favour later readers, dead ends pruned."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 1, len(graph.src))[:, None] * rng.lognormal(0, 1, len(graph.dst))
    scores = np.where(graph.mask, rng.normal(0, 1, graph.mask.shape) * size, np.nan)
    known = {"model": "random", "weights_hash": "ab" * 32, "d_model": 16, "metric": "projection"}
    return Circuit(graph, choose(graph, scores, n=n, rule="greedy"), scores, {**known, **attrs})
