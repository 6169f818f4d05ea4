"""What tests of an analysis need: models that are tiny, models whose mechanism is known, and oracles.

:func:`tiny_model` makes a random model of every supported family, :func:`planted` a model whose
circuit was set by hand. The oracles say what the answer is in plain PyTorch, slowly and sharing no
arithmetic with the code they are compared with: :mod:`~refusal_nn.testing.hooks` captures, edits and
generates with hooks, :mod:`~refusal_nn.testing.pipeline` finds and applies a refusal direction by them
as published, :class:`SplitGraph` gives every reader a residual stream of its own (which writers
it sees is the edge graph's to say), and :class:`CircuitRuns` runs a circuit edge by edge.
"""

from refusal_nn.testing import hooks, pipeline
from refusal_nn.testing._circuits import GRAPHS, random_circuit, random_pairs
from refusal_nn.testing._families import (
    D_HEAD,
    D_MODEL,
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    PARALLEL,
    SEQUENTIAL,
    SPECIAL,
    TEMPLATE,
    VOCABULARY,
    plain_module,
    tiny_model,
    tiny_module,
    tiny_tokenizer,
    wrap,
)
from refusal_nn.testing._planted import PLANTED, Planted, planted, planted_pairs
from refusal_nn.testing.circuit_runs import CircuitRuns
from refusal_nn.testing.layouts import LAYOUTS, Layout
from refusal_nn.testing.split_graph import SplitGraph, edge_scores, exact_scores

__all__ = [
    "D_HEAD",
    "D_MODEL",
    "FAMILIES",
    "GRAPHS",
    "LAYOUTS",
    "N_HEADS",
    "N_LAYERS",
    "PARALLEL",
    "PLANTED",
    "SEQUENTIAL",
    "SPECIAL",
    "TEMPLATE",
    "VOCABULARY",
    "CircuitRuns",
    "Layout",
    "Planted",
    "SplitGraph",
    "edge_scores",
    "exact_scores",
    "hooks",
    "pipeline",
    "plain_module",
    "planted",
    "planted_pairs",
    "random_circuit",
    "random_pairs",
    "tiny_model",
    "tiny_module",
    "tiny_tokenizer",
    "wrap",
]
