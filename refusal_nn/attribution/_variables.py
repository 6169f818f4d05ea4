"""The variables of attribution to nodes and edges; imported once, for its effect on the registry."""

from __future__ import annotations

from functools import partial

from refusal_nn.store.variables import register, specs

_SIGN = "negative: corrupting lowers the metric. The attrs name metric and method"
_DRAWS = "over families of pairs; NaN for one family"

_score = partial(specs, "float", "unit of the metric", "Syed et al. 2023; Hanna et al. 2024")
_error = partial(specs, "float", "unit of the metric", "")

register(
    *_score(
        "[prompt], src, dst",
        edge_score="Change of the metric when this edge alone carries the corrupted prompt's value; "
        f"{_SIGN}",
    ),
    *_score("src, dst", edge_score_mean=f"Mean of edge_score over pairs; {_SIGN}"),
    *_error("src, dst", edge_score_se=f"Standard error of edge_score_mean {_DRAWS}"),
    *_score(
        "prompt, src",
        node_score="Change of the metric when all edges that leave this node are corrupted; "
        f"{_SIGN}",
    ),
    *_score("src", node_score_mean=f"Mean of node_score over pairs; {_SIGN}"),
    *_error("src", node_score_se=f"Standard error of node_score_mean {_DRAWS}"),
)
