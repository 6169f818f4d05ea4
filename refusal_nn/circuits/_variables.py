"""Variables of circuits: edges of the residual stream's graph, and what is left when only they work."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_HANNA = "Hanna et al. 2024"
_MIB = "Mueller et al. 2025 (MIB)"
_CIRCUITS = ("circuit", "ranking", "fraction", "null", "draw", "edge")
register(
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
)

register(
    Spec("in_circuit", ("src", "dst"), "bool", "", "Whether the circuit keeps the edge"),
    Spec(
        "circuit_metric",
        (*_CIRCUITS, "prompt"),
        "float",
        "units of the metric",
        "Metric of each pair when only the circuit's edges carry the clean run",
        _HANNA,
        optional=_CIRCUITS,
    ),
    Spec(
        "edges_kept",
        (*_CIRCUITS,),
        "int",
        "count",
        "Edges of the circuit after dead ends are pruned",
        optional=_CIRCUITS,
    ),
    Spec(
        "faithfulness",
        (*_CIRCUITS, "pairs"),
        "float",
        "1",
        "(m(circuit) - m(nothing)) / (m(model) - m(nothing)), means over pairs first; 1 = the model",
        _HANNA,
        optional=(*_CIRCUITS, "pairs"),
    ),
    Spec(
        "completeness",
        ("circuit", "pairs"),
        "float",
        "1",
        "Faithfulness of all edges outside the circuit; lower = the circuit leaves less out",
        "Marks et al. 2024",
        optional=("circuit", "pairs"),
    ),
    Spec(
        "cpr",
        (),
        "float",
        "1",
        "Area under faithfulness over the fraction of edges, best supporters first; higher = better",
        _MIB,
    ),
    Spec(
        "cmd",
        (),
        "float",
        "1",
        "Area between faithfulness and 1 over the fraction of edges, largest first; lower = better",
        _MIB,
    ),
    Spec(
        "p_value",
        ("null",),
        "float",
        "0 to 1",
        "(1 + random circuits at least as faithful) / (1 + random circuits)",
        "Phipson and Smyth 2010",
        optional=("null",),
    ),
    Spec(
        "edge_effect",
        ("edge",),
        "float",
        "1",
        "Faithfulness lost when this edge alone is taken out of the circuit",
    ),
    Spec(
        "inclusion",
        ("src", "dst"),
        "float",
        "0 to 1",
        "Share of resamples of the prompts whose circuit keeps the edge",
        "Meloux et al. 2025",
    ),
    Spec(
        "jaccard",
        (),
        "float",
        "0 to 1",
        "Mean overlap (intersection over union of edges) of two resamples' circuits",
        "Meloux et al. 2025",
    ),
    Spec("iou", ("circuit", "other"), "float", "0 to 1", "Edges of both over edges of either"),
    Spec("node_iou", ("circuit", "other"), "float", "0 to 1", "Nodes of both over nodes of either"),
    Spec(
        "iou_at",
        ("fraction", "circuit", "other"),
        "float",
        "0 to 1",
        "iou of each one's largest edges, as many as a fraction of all",
    ),
    Spec(
        "rank_correlation",
        ("circuit", "other"),
        "float",
        "-1 to 1",
        "Spearman correlation of the sizes of the edges' scores",
    ),
    Spec(
        "rank_overlap",
        ("circuit", "other"),
        "float",
        "0 to 1",
        "Rank-biased overlap of the edges by size, weighted to the depth of the larger circuit",
        "Webber et al. 2010",
    ),
    Spec(
        "overlap_p",
        ("null", "circuit", "other"),
        "float",
        "0 to 1",
        "Chance that random circuits share as many edges or more, Holm-adjusted over pairs",
    ),
    Spec(
        "input_sum",
        ("block", "position", "d_model"),
        "float",
        "residual stream units",
        "Sum of embeddings",
    ),
    Spec(
        "z_sum",
        ("block", "layer", "position", "head", "d_head"),
        "float",
        "activation units",
        "Sum of what each head gives its output projection, over the scale of the norm behind it",
    ),
    Spec(
        "mlp_sum",
        ("block", "layer", "position", "d_model"),
        "float",
        "residual stream units",
        "Sum of MLP outputs",
    ),
)
