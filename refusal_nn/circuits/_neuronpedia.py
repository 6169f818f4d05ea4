"""Circuits as attribution graphs that Neuronpedia's viewer opens.

Its format is for features at token positions. Scores here are summed over positions, so a graph has
one column; heads and MLPs are nodes of type ``unknown``, for which the viewer looks up no feature.
Scores of the query, key and value edges between two nodes are added up, since it knows one link
between two nodes; a link's weight is positive where it supports the metric.

References
----------
Neuronpedia, ``apps/webapp/app/api/graph/graph-schema.json`` (version 1.0.0), and what its viewer
asks beyond the schema: a node above layer 0, and ``(p=...)`` in the label of a logit node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refusal_nn import __version__
from refusal_nn.circuits._eap_ig import expanded
from refusal_nn.circuits._parts import Component, parts
from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.circuits._circuit import Circuit
    from refusal_nn.models._graph import EdgeGraph

COLUMN = "all positions"
"""The one entry of ``prompt_tokens``: what stands in for the tokens of a prompt."""


def to_tree(circuit: Circuit, *, name: str, model: Mapping[str, str]) -> dict[str, Any]:
    """The attribution graph as plain data.

    Parameters
    ----------
    circuit : Circuit
    name : str
        Becomes the slug: lower case letters, digits and hyphens.
    model : mapping
        ``model`` is the name that Neuronpedia knows the model by.

    Returns
    -------
    dict
        ``metadata``, ``qParams``, ``nodes``, ``links``. With grouped-query attention each query head
        has its share of the edges into its key-value head.

    Raises
    ------
    RequestError
        If the circuit has no scores, or nothing above layer 0, which the viewer cannot open.
    """
    if circuit.scores is None:
        raise RequestError(
            "Neuronpedia's links need weights, but this circuit has no scores; export it as GraphML, "
            "DOT or EAP-IG JSON instead."
        )
    full, kept, scores = expanded(circuit)
    taken = parts(full, kept, scores)
    if not any(c.layer for c in taken.components):
        raise RequestError(
            "Neuronpedia's viewer opens no graph without a node above layer 0, and this circuit has "
            "none; export it as GraphML or DOT instead."
        )
    nodes = {c.name: _node(c, full) for c in taken.components}
    weights: dict[tuple[str, str], float] = {}
    for arrow in taken.arrows:
        pair = nodes[arrow.src]["node_id"], nodes[arrow.dst]["node_id"]
        weights[pair] = weights.get(pair, 0.0) + arrow.score
    label = str(model.get("model", "model"))
    return {
        "metadata": {
            "slug": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "circuit",
            "scan": label,
            "prompt_tokens": [COLUMN],
            "prompt": f"Circuit of {label}: {len(taken.arrows):,} of {full.n_edges:,} edges, scores "
            "summed over positions and averaged over prompts",
            "info": {
                "description": "Nodes are attention heads and MLPs. A link's weight is the sum of "
                "the scores of the query, key and value edges between its nodes.",
                "generator": {"name": "refusal_nn", "version": __version__},
            },
            "generation_settings": {
                k: v for k, v in circuit.attrs.items() if isinstance(v, str | int | float | bool)
            },
        },
        "qParams": {
            "linkType": "both",
            "pinnedIds": [node["node_id"] for node in nodes.values()],
            "clickedId": "",
            "supernodes": [],
            "sg_pos": "",
        },
        "nodes": list(nodes.values()),
        "links": [{"source": s, "target": t, "weight": w} for (s, t), w in weights.items()],
    }


def _node(component: Component, full: EdgeGraph) -> dict[str, Any]:
    bars = {"input": ("E", "embedding"), "logits": (str(full.n_layers), "logit")}
    layer, kind = bars.get(component.kind, (str(component.layer), "unknown"))
    feature = 0
    if component.layer is not None:  # heads count from 0; the MLP comes after the last one
        feature = full.n_heads if component.head is None else component.head
    return {
        "node_id": f"{layer}_{feature}_0",
        "feature": feature,
        "layer": layer,
        "ctx_idx": 0,
        "feature_type": kind,
        "jsNodeId": f"{layer}_{feature}-0",
        # the viewer reads a probability out of the label of every logit node
        "clerp": "Output: the metric (p=1)" if kind == "logit" else component.name,
        "influence": None,
        "activation": None,
    }
