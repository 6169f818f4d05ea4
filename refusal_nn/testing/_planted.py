"""Models whose circuit is known by construction, wrapped, with their pairs and metric."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from nnsight.modeling.transformers import TransformersModel

from refusal_nn.attribution import Metric
from refusal_nn.circuits import Circuit
from refusal_nn.models import Model, wrap_model
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.prompts import Pairs
from refusal_nn.testing import gate, words
from refusal_nn.testing.shapes import SHAPES

PLANTED = ("gate", *SHAPES)
"""Names of the planted models."""


@dataclass(frozen=True)
class Planted:
    """A planted model and what is known of it.

    ``metric`` is the log-odds of refusal, in nats; ``truth`` the planted circuit, whose scores
    ``[src, dst]`` are -1 on planted edges and near 0 on the others.
    """

    name: str
    model: Model
    graph: EdgeGraph
    metric: Metric
    truth: Circuit


@cache
def planted(name: str) -> Planted:
    """One of :data:`PLANTED`, made once.

    Examples
    --------
    >>> known = planted("gate")
    >>> known.truth
    <Circuit: 9 of 479 edges, 5 nodes>
    """
    if name == "gate":
        module, tokenizer = gate.build_planted()
        edges = gate.PLANTED_EDGES
    else:
        shape = SHAPES[name]()
        module, tokenizer, edges = shape.model, shape.tokenizer, shape.edges
    model = wrap_model(
        TransformersModel(module, tokenizer=tokenizer), tokenizer, name=f"planted-{name}"
    )
    graph = EdgeGraph.of(model.arch)
    kept = Circuit.from_edges(graph, edges).kept
    # a ranking that knows: planted edges matter, the others hardly
    noise = np.random.default_rng(0).normal(0, 1e-3, kept.shape)
    scores = np.where(graph.mask, np.where(kept, -1.0, noise), np.nan)
    metric = Metric.refusal_log_odds([tokenizer.get_vocab()["I"]])
    return Planted(name, model, graph, metric, Circuit(graph, kept, scores))


@cache
def planted_pairs() -> dict[str, Pairs]:
    """Pairs that all planted models tell apart, harmful prompt first, by split: ``train``, ``test``.

    The splits have different objects and the same verbs.
    """
    rows = [
        {
            "clean": clean,
            "corrupted": corrupted,
            "category": clean.split()[-1].strip("?."),
            "split": "train" if i % 10 < 4 else "test",
            "family": f"{i % 10}",
        }
        for i, (clean, corrupted) in enumerate(words.planted_pairs())
    ]
    every = Pairs.from_rows(rows, name="planted-pairs")
    return {"train": every.train[::3], "test": every.test[::3]}
