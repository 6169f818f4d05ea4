"""Variables of circuits: edges of the residual stream's graph, and what is left when only they work."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_HANNA = "Hanna et al. 2024"
_MIB = "Mueller et al. 2025 (MIB)"
_MELOUX = "Meloux et al. 2025"
_CIRCUITS = ("circuit", "ranking", "fraction", "null", "draw", "edge")
_TWO = ("circuit", "other")


def _label(name: str, summary: str, unit: str = "", *, dtype: str = "string") -> Spec:
    return Spec(name, (), dtype, unit, summary, coord=True)


def _number(
    name: str,
    dims: tuple[str, ...],
    summary: str,
    source: str = "",
    *,
    unit: str = "0 to 1",
    optional: tuple[str, ...] = (),
) -> Spec:
    """A number over ``optional`` dims, which may be absent, and ``dims``."""
    return Spec(name, (*optional, *dims), "float", unit, summary, source, optional)


SUMS = (
    _number(
        "input_sum",
        ("block", "position", "d_model"),
        "Sum of embeddings",
        unit="residual stream units",
    ),
    _number(
        "z_sum",
        ("block", "layer", "position", "head", "d_head"),
        "Sum of what each head gives its output projection, over the scale of the norm behind it",
        unit="activation units",
    ),
    _number(
        "mlp_sum",
        ("block", "layer", "position", "d_model"),
        "Sum of MLP outputs",
        unit="residual stream units",
    ),
)
"""What writers contribute, added up over prompts of one length."""

register(
    *SUMS,
    _label("circuit", "Name of a circuit; model: all edges, ablated: none"),
    _label("other", "Name of the circuit it is compared with"),
    _label("pairs", "Name of a set of pairs"),
    _label("ranking", "Edges by size or by support", "absolute | signed"),
    _label("fraction", "Edges asked for, as a fraction of all", "0 to 1", dtype="float"),
    _label("null", "How random circuits of equal size are drawn"),
    Spec("in_circuit", ("src", "dst"), "bool", "", "Whether the circuit keeps the edge"),
    _number(
        "circuit_metric",
        ("prompt",),
        "Metric of each pair when only the circuit's edges carry the clean run",
        _HANNA,
        unit="units of the metric",
        optional=_CIRCUITS,
    ),
    Spec(
        "edges_kept",
        _CIRCUITS,
        "int",
        "count",
        "Edges of the circuit after dead ends are pruned",
        optional=_CIRCUITS,
    ),
    _number(
        "faithfulness",
        (),
        "(m(circuit) - m(nothing)) / (m(model) - m(nothing)), means over pairs first; 1 = the model",
        _HANNA,
        unit="1",
        optional=(*_CIRCUITS, "pairs"),
    ),
    _number(
        "completeness",
        (),
        "Faithfulness of all edges outside the circuit; lower = the circuit leaves less out",
        "Marks et al. 2024",
        unit="1",
        optional=("circuit", "pairs"),
    ),
    _number(
        "cpr",
        (),
        "Area under faithfulness over the fraction of edges, best supporters first; higher = better",
        _MIB,
        unit="1",
    ),
    _number(
        "cmd",
        (),
        "Area between faithfulness and 1 over the fraction of edges, largest first; lower = better",
        _MIB,
        unit="1",
    ),
    _number(
        "p_value",
        (),
        "(1 + random circuits at least as faithful) / (1 + random circuits)",
        "Phipson and Smyth 2010",
        optional=("null",),
    ),
    _number(
        "edge_effect",
        ("edge",),
        "Faithfulness lost when this edge alone is taken out of the circuit",
        unit="1",
    ),
    _number(
        "inclusion",
        ("src", "dst"),
        "Share of resamples of the prompts whose circuit keeps the edge",
        _MELOUX,
    ),
    _number(
        "jaccard",
        (),
        "Mean overlap (intersection over union of edges) of two resamples' circuits",
        _MELOUX,
    ),
    _number("iou", _TWO, "Edges of both over edges of either"),
    _number("node_iou", _TWO, "Nodes of both over nodes of either"),
    _number(
        "iou_at",
        ("fraction", *_TWO),
        "iou of each one's largest edges, as many as a fraction of all",
    ),
    _number(
        "rank_correlation",
        _TWO,
        "Spearman correlation of the sizes of the edges' scores",
        unit="-1 to 1",
    ),
    _number(
        "rank_overlap",
        _TWO,
        "Rank-biased overlap of the edges by size, weighted to the depth of the larger circuit",
        "Webber et al. 2010",
    ),
    _number(
        "overlap_p",
        ("null", *_TWO),
        "Chance that random circuits share as many edges or more, Holm-adjusted over pairs",
    ),
)
