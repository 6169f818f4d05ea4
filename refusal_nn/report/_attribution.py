"""The part of a report on attribution: which edges, heads and MLPs carry the metric."""

from __future__ import annotations

from functools import partial

import numpy as np

from refusal_nn import plots
from refusal_nn.plots._attribution import node_summary
from refusal_nn.report._format import number, plural
from refusal_nn.report._page import Block, Paragraph, Part, Picture, Table, section
from refusal_nn.report._patching import metric_of
from refusal_nn.report._sources import Source, Study

SHOWN = 12

METHODS = {
    "exact": "each measured by patching it alone",
    "eap": "to first order, by the gradient at the clean run (edge attribution patching)",
    "atp": "to first order, by the gradient at the clean run (attribution patching)",
    "eap-ig": "by gradients at {steps} runs with embeddings between the corrupted and the clean ones "
    "(EAP-IG)",
    "clean-corrupted": "by the mean gradient of the clean and the corrupted run",
}


def edges(source: Source, *, summed: bool) -> list[Block]:
    """The matrix of edge scores, the strongest edges and, if ``summed``, what nodes add up to."""
    data = source.data
    mean = data["edge_score_mean"].transpose("src", "dst")
    error = data["edge_score_se"].transpose("src", "dst").values
    values = mean.values
    exist = np.argwhere(np.isfinite(values))
    size = np.abs(values[exist[:, 0], exist[:, 1]])
    order = np.argsort(-size, kind="stable")
    share = np.cumsum(size[order]) / max(size.sum(), np.finfo(float).tiny)
    rows = [
        [
            f"{mean['src'].values[s]} → {mean['dst'].values[d]}",
            _score(values[s, d], error[s, d]),
            f"{100 * held:.0f} %",
        ]
        for (s, d), held in zip(exist[order[:SHOWN]], share, strict=False)
    ]
    half = int(np.searchsorted(share, 0.5)) + 1
    blocks: list[Block] = [
        Paragraph(
            f"{_how(source, 'edge')} Half of the sum of |score| lies on {plural(half, 'edge')} of "
            f"{len(exist):,}."
        ),
        Picture(
            "edge-scores",
            plots.edge_scores(data),
            f"Mean score of every edge, from what writes (rows) to what reads (columns: within a layer "
            f"queries, keys, values, MLP). {_sign(source)} Grey: no edge.",
            "Matrix of edge scores, writers by readers.",
        ),
        Table.of(
            ["edge", "score", "running share"],
            rows,
            f"The {len(rows)} strongest edges: mean over pairs ± standard error, in {_unit(source)}, "
            "and the share of the sum of |score| that they and those above hold.",
        ),
    ]
    if summed:
        caption = "Scores added up over the edges that leave each head and MLP."
        blocks.append(_map("node-scores", source, caption))
    return blocks


def nodes(source: Source) -> list[Block]:
    """The map of node scores and the strongest ones."""
    mean, error = node_summary(source.data)
    order = np.argsort(-np.abs(np.nan_to_num(mean.values)), kind="stable")
    rows = [
        [str(mean["src"].values[k]), _score(float(mean.values[k]), float(error.values[k]))]
        for k in order[:SHOWN]
    ]
    return [
        Paragraph(_how(source, "node")),
        _map("attributed-nodes", source, f"Mean score of every head and MLP. {_sign(source)}"),
        Table.of(
            ["node", "score"],
            rows,
            f"The {len(rows)} strongest nodes, the embedding among them: mean over pairs ± "
            f"standard error, in {_unit(source)}.",
        ),
    ]


def _map(name: str, source: Source, caption: str) -> Picture:
    alt = "Heat map of node scores over layer and head."
    return Picture(name, plots.node_scores(source.data), caption, alt)


def _unit(source: Source) -> str:
    return str(source.attrs.get("metric_unit", "nats"))


def _how(source: Source, level: str) -> str:
    attrs = source.attrs
    method = str(attrs.get("method", ""))
    known = METHODS.get(method)  # of a method of others only the name is shown
    how = known.format(steps=attrs.get("steps", "several")) if known else f"by {method}"
    n = source.data.sizes.get("prompt", 0)
    return (
        f"The score of {'an' if level == 'edge' else 'a'} {level} is how much the {metric_of(source)} of "
        f"the harmful prompt changes when that {level} alone carries what it carries on the harmless "
        f"one, {how}. {plural(n, 'pair')}."
    )


def _sign(source: Source) -> str:
    if source.attrs.get("metric") == "kl":
        return "Positive: the edge is needed."
    return "Negative: corrupting lowers the metric, so what is corrupted supports it."


def _score(value: float, error: float) -> str:
    digits = 2 if abs(value) >= 1 else 3
    spread = f" ± {error:.{digits}f}" if np.isfinite(error) else ""
    return number(value, digits=digits) + spread


def part(study: Study) -> Part:
    """What attribution runs say."""
    by_node, by_edge = study.get("attribute-nodes"), study.get("attribute-edges")
    of_edges = partial(edges, summed=by_node is None)
    sections = [
        *section("attribute-nodes", "Attribution to nodes", nodes, by_node),
        *section("attribute-edges", "Attribution to edges", of_edges, by_edge),
    ]
    return Part(sections, reference="Attribution: Hanna et al. 2024, arXiv:2403.17806.")
