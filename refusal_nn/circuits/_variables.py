"""Variables of circuits: edges of the residual stream's graph, and what is left when only they work."""

from __future__ import annotations

from functools import partial

from refusal_nn.store.variables import Spec, register, specs

_HANNA = "Hanna et al. 2024"
_MELOUX = "Meloux et al. 2025"
_CIRCUITS = "[circuit], [ranking], [fraction], [null], [draw], [edge]"
_TWO = "circuit, other"

_stream = partial(specs, "float", "residual stream units", "")
_share = partial(specs, "float", "0 to 1")
_faithful = partial(specs, "float", "1")

SUMS = (
    *_stream("block, position, d_model", input_sum="Sum of embeddings"),
    *specs(
        "float",
        "activation units",
        "",
        "block, layer, position, head, d_head",
        z_sum="Sum of what each head gives its output projection, over the scale of the norm behind it",
    ),
    *_stream("block, layer, position, d_model", mlp_sum="Sum of MLP outputs"),
)
"""What writers contribute, added up over prompts of one length."""

register(
    *SUMS,
    Spec(
        "circuit",
        (),
        "string",
        "",
        "Name of a circuit; model: all edges, ablated: none",
        coord=True,
    ),
    Spec("other", (), "string", "", "Name of the circuit it is compared with", coord=True),
    Spec("pairs", (), "string", "", "Name of a set of pairs", coord=True),
    Spec("ranking", (), "string", "absolute | signed", "Edges by size or by support", coord=True),
    Spec("fraction", (), "float", "0 to 1", "Edges asked for, as a fraction of all", coord=True),
    Spec("null", (), "string", "", "How random circuits of equal size are drawn", coord=True),
    Spec("in_circuit", ("src", "dst"), "bool", "", "Whether the circuit keeps the edge"),
    *specs(
        "float",
        "units of the metric",
        _HANNA,
        f"{_CIRCUITS}, prompt",
        circuit_metric="Metric of each pair when only the circuit's edges carry the clean run",
    ),
    *specs(
        "int",
        "count",
        "",
        _CIRCUITS,
        edges_kept="Edges of the circuit after dead ends are pruned",
    ),
    *_faithful(
        _HANNA,
        f"{_CIRCUITS}, [pairs]",
        faithfulness="(m(circuit) - m(nothing)) / (m(model) - m(nothing)), means over pairs first; "
        "1 = the model",
    ),
    *_faithful(
        "Marks et al. 2024",
        "[circuit], [pairs]",
        completeness="Faithfulness of all edges outside the circuit; lower = the circuit leaves less "
        "out",
    ),
    *_faithful(
        "Mueller et al. 2025 (MIB)",
        "",
        cpr="Area under faithfulness over the fraction of edges, best supporters first; higher = "
        "better",
        cmd="Area between faithfulness and 1 over the fraction of edges, largest first; lower = better",
    ),
    *_faithful(
        "",
        "edge",
        edge_effect="Faithfulness lost when this edge alone is taken out of the circuit",
    ),
    *_share(
        "Phipson and Smyth 2010",
        "[null]",
        p_value="(1 + random circuits at least as faithful) / (1 + random circuits)",
    ),
    *_share(
        _MELOUX,
        "src, dst",
        inclusion="Share of resamples of the prompts whose circuit keeps the edge",
    ),
    *_share(
        _MELOUX,
        "",
        jaccard="Mean overlap (intersection over union of edges) of two resamples' circuits",
    ),
    *_share(
        "",
        _TWO,
        iou="Edges of both over edges of either",
        node_iou="Nodes of both over nodes of either",
    ),
    *_share(
        "",
        f"fraction, {_TWO}",
        iou_at="iou of each one's largest edges, as many as a fraction of all",
    ),
    *specs(
        "float",
        "-1 to 1",
        "",
        _TWO,
        rank_correlation="Spearman correlation of the sizes of the edges' scores",
    ),
    *_share(
        "Webber et al. 2010",
        _TWO,
        rank_overlap="Rank-biased overlap of the edges by size, weighted to the depth of the larger "
        "circuit",
    ),
    *_share(
        "",
        f"null, {_TWO}",
        overlap_p="Chance that random circuits share as many edges or more, Holm-adjusted over pairs",
    ),
)
