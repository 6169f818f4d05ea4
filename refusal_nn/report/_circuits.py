"""The part of a report on circuits: what was kept, what it does alone, how circuits overlap."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations

import numpy as np
import xarray as xr

from refusal_nn import plots
from refusal_nn.plots._circuit import MAX_EDGES
from refusal_nn.plots._read import bounds, confidence, labels
from refusal_nn.report._format import listed, number, p_value, percent, plural
from refusal_nn.report._page import Block, Paragraph, Part, Picture, Table, section
from refusal_nn.report._patching import metric_of
from refusal_nn.report._sources import Source, Study

STABLE = 0.8
"""Mean Jaccard index above which a circuit has been called stable (Meloux et al. 2025)."""

RULES = {
    "top": "the edges with the best scores",
    "greedy": "the best edges from the logits up",
    "threshold": "the edges above a threshold",
}
MEASURES = (
    ("faithfulness", "faithfulness", "the circuit alone; 1: as the whole model"),
    ("completeness", "of the complement", "everything but the circuit; 0: nothing is left"),
    ("cpr", "CPR", "area under faithfulness, edges by support; higher is better"),
    ("cmd", "CMD", "area between faithfulness and 1, edges by size; lower is better"),
)
"""Variable, name and meaning of what is measured of a circuit."""


def discovered(source: Source) -> list[Block]:
    """The circuit's size, its drawing and how stable it is."""
    text = _size(source.data)
    sizes, target = source.groups.get("sizes"), source.attrs.get("target")
    if sizes is not None and target is not None:
        text += (
            f" It is the smallest of {plural(sizes.sizes['circuit'], 'size')} tried to reach faithfulness "
            f"{float(target):g} on {plural(sizes.sizes['prompt'], 'selection pair')}"
        )
        value, low = (
            float(source.attrs.get(f"faithfulness{end}", math.nan)) for end in ("", "_low")
        )
        if math.isfinite(low):
            text += f" ({value:.3f}, at least {low:.3f})"
        text += "."
    return [Paragraph(text), *_drawing(source.data), *_stability(source)]


def evaluated(source: Source, *, drawn: bool) -> list[Block]:
    """Faithfulness by size and against random circuits; with the drawing unless it is there already."""
    data, groups = source.data, source.groups
    grid, null = groups.get("grid"), groups.get("null")
    blocks: list[Block] = [
        Paragraph(
            "The model is run with the circuit's edges alone, every other edge carrying what it carries "
            f"{_ablated(source)}. Faithfulness is the share of the difference in the {metric_of(source)} "
            "between the whole model and the model with all edges ablated that is left: 0 none, 1 all of "
            f"it. {plural(int(data.sizes['prompt']), 'pair')} that took no part in finding the circuit."
        )
    ]
    if not drawn and "edges" in groups:
        blocks += [Paragraph(_size(groups["edges"])), *_drawing(groups["edges"])]
    caption = "Faithfulness of the circuit"
    if grid is not None:
        caption += " and of circuits of other sizes from the same scores"
    caption += f", with intervals ({_interval(source)})."
    if null is not None:
        caption += (
            f" Right: {plural(null.sizes['draw'], 'random circuit')} of each kind with as many edges, "
            "the line being the circuit; bars hold the central 95 %."
        )
    blocks.append(
        Picture(
            "faithfulness",
            plots.faithfulness_curve(data, grid, null),
            caption,
            "Lines of faithfulness by size of the circuit, beside dots of random circuits.",
        )
    )
    random = [] if null is None else [_nulls(null)]
    return [*blocks, _measures(source), *random, *_minimality(groups.get("minimality"))]


def compared(source: Source) -> list[Block]:
    """Overlap of circuits two by two, and what one does on another's pairs."""
    data = source.data
    rows = []
    for first, second in combinations(labels(data, "circuit"), 2):
        at = data.sel(circuit=first, other=second)
        row = [f"{first} and {second}"]
        for name in ("iou", "node_iou", "rank_correlation", "rank_overlap"):
            row.append(number(float(at.get(name, math.nan)), digits=2))
        rows.append(row + [p_value(float(v)) for v in at.get("overlap_p", ())])
    columns = ["circuits", "edges shared", "nodes shared", "rank correlation", "rank overlap"]
    if "overlap_p" in data:
        columns += [f"p ({kind})" for kind in labels(data, "null")]
    blocks: list[Block] = [
        Table.of(
            columns,
            rows,
            "Shared: intersection over union. Rank: Spearman correlation and rank-biased overlap "
            "of |score|. p: chance that random circuits of these sizes share as many edges, adjusted by "
            "Holm. Circuits can do the same with few edges in common, so low overlap alone does not show "
            "different mechanisms.",
        )
    ]
    crosses = [g for g in source.groups.values() if "faithfulness" in g and "pairs" in g.dims]
    return [*blocks, *map(_cross, crosses[:1])]


def answer(discovery: Source | None, evaluation: Source | None, *, name: str) -> list[str]:
    """What the circuit is and does; ``name`` is the run's where there are several."""
    start = f"Run {name}: the circuit" if name else "The circuit"
    if evaluation is not None:
        data, null = evaluation.data, evaluation.groups.get("null")
        sentence = (
            f"{start} of {int(data.attrs['n_kept']):,} of {int(data.attrs['n_total']):,} edges has "
            f"faithfulness {_at(data, 'faithfulness')} on held-out pairs"
        )
        if null is not None:
            kinds = [
                f"{p_value(float(null['p_value'].sel(null=kind)))} against {kind} circuits"
                for kind in labels(null, "null")
            ]
            sentence += f" (p = {listed(kinds)} of equal size)"
        return [f"{sentence}; without it the rest of the model has {_at(data, 'completeness')}."]
    return [] if discovery is None else [_size(discovery.data, start)]


def _size(circuit: xr.Dataset, start: str = "The circuit") -> str:
    attrs = circuit.attrs
    kept, total = int(attrs["n_kept"]), int(attrs["n_total"])
    text = f"{start} keeps {kept:,} of {plural(total, 'edge')} ({percent(kept / total)})"
    rule = RULES.get(str(attrs.get("rule", "")))
    if rule:
        text += f": {rule}" + (", by size" if attrs.get("ranking") == "absolute" else "")
    requested = attrs.get("requested")
    if requested is not None and int(requested) != kept:
        text += f"; {int(requested):,} were asked for, the others led nowhere"
    return f"{text}."


def _drawing(circuit: xr.Dataset) -> list[Block]:
    if not bool(circuit["in_circuit"].any()):
        return [Paragraph("It is empty.")]
    grouped = int(circuit.attrs["n_kv_heads"]) < int(circuit.attrs["n_heads"])
    shared = " Dotted: heads that share a key-value head." if grouped else ""
    kept = int(circuit.attrs["n_kept"])
    part = f" Only the {MAX_EDGES} strongest edges are drawn." if kept > MAX_EDGES else ""
    return [
        Picture(
            "circuit",
            plots.circuit_drawing(circuit),
            "The circuit. Every edge runs upward, from what writes to what reads; its width is |score|, "
            f"and it is dashed where it works against the metric.{shared}{part}",
            "Drawing of the circuit: heads and MLPs by layer, joined by edges.",
        )
    ]


def _stability(source: Source) -> list[Block]:
    found = source.groups.get("stability")
    if found is None:
        return []
    kept = source.data["in_circuit"].transpose("src", "dst").values.astype(bool)
    inclusion = found["inclusion"].transpose("src", "dst").values
    inside = inclusion[kept]
    rows = []
    for share in (0.5, 0.9, 1.0):
        many = np.nan_to_num(inclusion) >= share
        which = "all" if share == 1 else f"at least {percent(share)} of"
        counts = [f"{int(edges.sum()):,}" for edges in (many, many & kept)]
        rows.append([f"in {which} resamples", *counts])
    mean, low, high = bounds(found, "jaccard")
    verdict = "stable" if mean > STABLE else "not stable"
    return [
        Paragraph(
            f"Circuits of two resamples of the discovery pairs ({plural(found.sizes['draw'], 'resample')}) "
            f"share {mean:.2f} of their edges on average (Jaccard; central 95 %: {low:.2f} to {high:.2f}), "
            f"so by the published bar of {STABLE} the circuit is {verdict}. An edge of the circuit is in "
            f"{percent(float(np.mean(inside))) if inside.size else '–'} of them on average."
        ),
        Table.of(
            ["edges found", "edges", "of the circuit"],
            rows,
            "Consensus over resamples of whole families of pairs.",
        ),
    ]


def _measures(source: Source) -> Table:
    data = source.data
    rows = [[title, _at(data, name), what] for name, title, what in MEASURES if name in data]
    return Table(
        ["", "value", ""],
        rows,
        caption=f"Intervals: {_interval(source)}. CPR and CMD as MIB defines them, over shares of edges "
        "from 0.001 to 1.",
        numeric=(1,),
    )


def _nulls(null: xr.Dataset) -> Table:
    rows = []
    for kind in labels(null, "null"):
        draws = null["faithfulness"].sel(null=kind).values
        middle, largest = (number(float(v)) for v in (np.median(draws), draws.max()))
        p = p_value(float(null["p_value"].sel(null=kind)))
        rows.append([kind, f"{len(draws):,}", middle, largest, p])
    return Table.of(
        ["random circuits", "n", "median faithfulness", "largest", "p"],
        rows,
        "Circuits of as many edges made the same way from scores dealt out at random, to any edges "
        "or, layer-matched, among those between the same layers and kinds of node. p: share of them that "
        "do as well, the circuit counted.",
    )


def _minimality(found: xr.Dataset | None) -> list[Block]:
    if found is None or not found.sizes.get("edge"):
        return []
    lost, low = found["edge_effect"].values, found["edge_effect_low"].values
    order = np.argsort(-lost, kind="stable")[:12]
    most = (found.isel(edge=k) for k in order)
    rows = [[f"{at['src'].item()} → {at['dst'].item()}", _at(at, "edge_effect")] for at in most]
    caption = (
        f"What the circuit loses without one of its edges; {int((low > 0).sum()):,} of "
        f"{plural(len(lost), 'edge')} lose more than nothing (interval above 0). The {len(rows)} "
        "that lose most."
    )
    return [Table.of(["edge left out", "faithfulness lost"], rows, caption)]


def _cross(cross: xr.Dataset) -> Table:
    tasks = labels(cross, "pairs")
    rows = [
        [name, *(_at(cross.sel(circuit=name, pairs=task), "faithfulness") for task in tasks)]
        for name in labels(cross, "circuit")
    ]
    return Table.of(
        ["circuit", *(f"on {task}" for task in tasks)],
        rows,
        "Faithfulness of every circuit on every set of held-out pairs, with intervals.",
    )


def _at(data: xr.Dataset, name: str) -> str:
    return number(*bounds(data, name))


def _ablated(source: Source) -> str:
    return {
        "resample": "on the pair's harmless prompt",
        "mean": "on average over the discovery prompts",
        "zero": "if its writer wrote nothing",
    }.get(str(source.attrs.get("ablation")), "under ablation")


def _interval(source: Source) -> str:
    return f"{confidence(source.attrs)}, {source.attrs.get('interval', 'method not recorded')}"


def part(study: Study) -> Part:
    """What circuit runs say."""
    found, tested = study.get("circuit-discover"), study.get("circuit-evaluate")
    beside = study.get("circuit-compare")
    alone = partial(evaluated, drawn=found is not None)
    sections = [
        *section("circuit-discover", "The circuit", discovered, found),
        *section("circuit-evaluate", "What the circuit does alone", alone, tested),
        *section("circuit-compare", "Circuits compared", compared, beside),
    ]
    sentences = answer(found, tested, name=study.name_of(tested or found))
    reference = (
        "Circuits: Hanna et al. 2024, arXiv:2403.17806; Mueller et al. 2025, arXiv:2504.13151."
    )
    return Part(sections, sentences, reference)
