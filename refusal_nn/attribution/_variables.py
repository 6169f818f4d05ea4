"""The variables of attribution to nodes and edges; imported once, for its effect on the registry."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_SCORE = "negative: corrupting lowers the metric. The attrs name metric and method"
_SYED = "Syed et al. 2023; Hanna et al. 2024"

register(
    Spec(
        "edge_score",
        ("prompt", "src", "dst"),
        "float",
        "unit of the metric",
        f"Change of the metric when this edge alone carries the corrupted prompt's value; {_SCORE}",
        _SYED,
        optional=("prompt",),
    ),
    Spec(
        "edge_score_mean",
        ("src", "dst"),
        "float",
        "unit of the metric",
        f"Mean of edge_score over pairs; {_SCORE}",
        _SYED,
    ),
    Spec(
        "edge_score_se",
        ("src", "dst"),
        "float",
        "unit of the metric",
        "Standard error of edge_score_mean over families of pairs; NaN for one family",
    ),
    Spec(
        "node_score",
        ("prompt", "src"),
        "float",
        "unit of the metric",
        f"Change of the metric when all edges that leave this node are corrupted; {_SCORE}",
        _SYED,
    ),
    Spec(
        "node_score_mean",
        ("src",),
        "float",
        "unit of the metric",
        f"Mean of node_score over pairs; {_SCORE}",
        _SYED,
    ),
    Spec(
        "node_score_se",
        ("src",),
        "float",
        "unit of the metric",
        "Standard error of node_score_mean over families of pairs; NaN for one family",
    ),
)
