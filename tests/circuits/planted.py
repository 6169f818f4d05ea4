"""Planted models, wrapped, with their pairs, metric and known circuit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from nnsight.modeling.transformers import TransformersModel

from refusal_nn.attribution import EdgeGraph, Metric
from refusal_nn.circuits import Circuit
from refusal_nn.models import Model, wrap_model
from refusal_nn.models.organisms.planted import PLANTED_EDGES, build_planted, planted_pairs
from refusal_nn.models.organisms.planted_shapes import SHAPES
from refusal_nn.prompts import Pairs

NAMES = ("gate", *SHAPES)


@dataclass(frozen=True)
class Planted:
    name: str
    model: Model
    graph: EdgeGraph
    metric: Metric
    truth: Circuit


@cache
def planted(name: str) -> Planted:
    if name == "gate":
        module, tokenizer = build_planted()
        edges = PLANTED_EDGES
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
def pairs() -> dict[str, Pairs]:
    """Train and test pairs of different objects, every verb in both."""
    rows = [
        {
            "clean": clean,
            "corrupted": corrupted,
            "category": clean.split()[-1].strip("?."),
            "split": "train" if i % 10 < 4 else "test",
            "family": f"{i % 10}",
        }
        for i, (clean, corrupted) in enumerate(planted_pairs())
    ]
    every = Pairs.from_rows(rows, name="planted-pairs")
    return {"train": every.train[::3], "test": every.test[::3]}
