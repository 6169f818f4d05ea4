"""The part of a report on activation patching: where the decision is, and which heads make it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn import plots
from refusal_nn.plots._patching import INTERCHANGE_NAMES, SITE_NAMES
from refusal_nn.plots._read import bounds, confidence, labels, marked
from refusal_nn.report import _patched_runs
from refusal_nn.report._format import interval, listed, minus, nats, p_value, percent, plural
from refusal_nn.report._page import Block, Paragraph, Part, Picture, Table, section
from refusal_nn.report._sources import Source, Study

HEADS_SHOWN = 20
CASCADE_SHOWN = 16
"""A table of heads by heads wider than this is left to the run."""

GIVEN = {"sufficiency": ("harmful", "harmless"), "necessity": ("harmless", "harmful")}
"""Which prompt of a pair activations come from, and which is run with them."""

METRIC_NAMES = {
    "refusal-log-odds": "log-odds of the refusal tokens",
    "logit-difference": "logit difference",
    "projection": "projection on a direction",
    "kl": "KL divergence from the clean run",
}


def metric_of(source: Source) -> str:
    """The metric of a run as text, with its unit."""
    kind = str(source.attrs.get("metric", "metric"))
    unit = str(source.attrs.get("metric_unit", "nats"))
    return f"{METRIC_NAMES.get(kind, kind)} ({unit})"


def positions(source: Source) -> list[Block]:
    """Recovery over layer and position: the heat maps, and the best place of every site."""
    data, attrs = source.data, source.attrs
    into = str(attrs.get("interchange", "sufficiency"))
    how = into
    if into in GIVEN:
        given, taken = GIVEN[into]
        how = (
            f"The {taken} prompt of a pair is run with the {given} prompt's activation at one place"
        )
    if attrs.get("cumulative"):
        how += ", and at the same place of all layers before it"
    places = plural(data.sizes["layer"] * data.sizes["position"], "place")
    rows = []
    for site in labels(data, "site"):
        (layer, position), value = best_place(data, site)
        rows.append([SITE_NAMES.get(site, site), str(layer), minus(position), value])
    return [
        Paragraph(
            f"{how}. Recovery is the share of the pair's difference in the {metric_of(source)} that this "
            f"moves: 0 % nothing, 100 % all of it. {_pairs(source)}"
        ),
        Picture(
            "recovery-by-position",
            plots.patch_positions(data),
            f"{INTERCHANGE_NAMES.get(into, into)}. Mean recovery over layer and position. "
            f"{_interval(source)}",
            "Heat maps of recovery over layer and position, one for each site.",
        ),
        Table.of(
            ["site", "layer", "position", "recovery"],
            rows,
            f"The place of each site that recovers most. {_interval(source)} Each is the best of "
            f"{places}, so its interval is too narrow.",
        ),
        *_patched_runs.said(source),
    ]


def best_place(data: xr.Dataset, site: str) -> tuple[tuple[int, int], str]:
    """Layer and position of a site's largest mean recovery, and it with its interval."""
    here = data.sel(site=site).stack(place=("layer", "position"))
    at = here.isel(place=int(here["recovery_mean"].argmax("place")))
    return (int(at["layer"]), int(at["position"])), interval(*bounds(at, "recovery_mean"))


def heads(source: Source) -> list[Block]:
    """Recovery of every head, the refusal heads, what they do together and to one another."""
    data = source.data
    blocks: list[Block] = [
        Paragraph(
            "The output of a single head in one prompt of a pair is replaced by its output in the other: "
            "sufficiency into the harmless prompt, necessity into the harmful one. Recovery is the share "
            f"of the pair's difference in the {metric_of(source)} that this moves. {_pairs(source)}"
        ),
        Picture(
            "recovery-by-head",
            plots.patch_heads(data),
            f"Mean recovery of every head. {_interval(source)}"
            + (" Framed: the refusal heads." if "refusal_head" in data else ""),
            "Heat maps of recovery over layer and head, one for each direction of patching.",
        ),
    ]
    if "refusal_head" not in data:
        return blocks + _tested(source)
    found = marked(data["refusal_head"], "layer", "head")
    if not found:
        return [
            *blocks,
            Paragraph("No head was found that decides to refuse, alone or with others."),
        ]
    together = [_head_table(source, found), _joint(source)]
    return [*blocks, *together, *_cascade(source), *_patched_runs.said(source)]


def _tested(source: Source) -> list[Block]:
    """Heads that pass the test, for a run that only tests single ones."""
    data = source.data
    if "head_p_adjusted" not in data:
        return []
    rows, directions = [], labels(data, "interchange")
    table = data.stack(place=("layer", "head"))
    order = np.argsort(-table["recovery_mean"].max("interchange").values, kind="stable")
    for k in order[:HEADS_SHOWN]:
        at = table.isel(place=int(k))
        if float(at["head_p_adjusted"].min()) <= 0.05:
            name = f"a{int(at['layer'])}.h{int(at['head'])}"
            rows.append([name, *_both(at, directions)])
    if not rows:
        return [Paragraph("No head moves the metric more than chance does (adjusted p ≤ .05).")]
    caption = (
        f"Heads with adjusted p ≤ .05, at most {HEADS_SHOWN}. p: {source.attrs.get('test', '')}. "
        f"{_interval(source)}"
    )
    return [Table.of(["head", *_columns(directions)], rows, caption)]


def _columns(directions: list[str]) -> list[str]:
    """Names of the columns that :func:`_both` fills."""
    return [column for into in directions for column in (into, "p")]


def _both(at: xr.Dataset, directions: list[str]) -> list[str]:
    row = []
    for into in directions:
        here = at.sel(interchange=into)
        row += [interval(*bounds(here, "recovery_mean")), p_value(float(here["head_p_adjusted"]))]
    return row


def _head_table(source: Source, found: list[tuple[int, int]]) -> Table:
    data, directions = source.data, labels(source.data, "interchange")
    rows = []
    for layer, head in found[:HEADS_SHOWN]:
        at = data.sel(layer=layer, head=head)
        rows.append(
            [
                f"a{layer}.h{head}",
                _held(at, "role", str),
                _held(at, "found_by", str),
                *_both(at, directions),
                _held(at, "stability", percent),
                _held(at, "direct_attribution", nats),
            ]
        )
    hidden = len(found) - len(rows)
    more = f" {plural(hidden, 'more head')} not shown." if hidden else ""
    return Table.of(
        ["head", "role", "found", *_columns(directions), "stability", "direct"],
        rows,
        "The refusal heads, on pairs that took no part in finding them. Role: a gate makes later "
        "heads fall when it is exchanged, an amplifier falls with an earlier one, a relay does both, the "
        "others neither. "
        "Found: by its effect alone, or only in a set of heads. Stability: share of resamples of the "
        "discovery pairs in which the head is found again by its effect alone. Direct: what it writes "
        f"straight to the metric, clean minus corrupted. p: {source.attrs.get('test', '')}. "
        f"{_interval(source)}{more}",
        words=3,
    )


def _held(at: xr.Dataset, name: str, form: Callable[[Any], str]) -> str:
    return form(at[name].item()) if name in at else ""


def _joint(source: Source) -> Table:
    data = source.data
    rows = []
    for into in labels(data, "interchange"):
        at = data.sel(interchange=into)
        # a model with few other heads has no random sets of as many
        controls = at["control_recovery"].values if "control_recovery" in at else np.array([])
        controls = controls[np.isfinite(controls)]
        spread = "–"
        if controls.size:
            spread = f"{percent(float(np.median(controls)))} ({percent(float(controls.max()))})"
        joint = interval(*bounds(at, "joint_recovery"))
        chance = [p_value(float(at["control_p"])), f"{controls.size:,}"]
        rows.append([INTERCHANGE_NAMES.get(into, into), joint, spread, *chance])
    return Table.of(
        ["", "all refusal heads", "random heads: median (largest)", "p", "n"],
        rows,
        "All refusal heads exchanged at once, and as many random other heads. p: share of random sets "
        f"that do as well, the found one counted. {_interval(source)}",
    )


def _cascade(source: Source) -> list[Block]:
    tower = source.groups.get("cascade")
    if tower is None or "cascade" not in tower or not 2 <= tower.sizes["dst"] <= CASCADE_SHOWN:
        return []
    falls = tower["cascade"].transpose("src", "dst").dropna("src", how="all")
    rows = [[str(row["src"].item()), *(_whole(float(v)) for v in row)] for row in falls]
    if not rows:
        return []
    caption = (
        "Which heads fall with which, in per cent: the share of what a head (column) does for the "
        "metric that goes when an earlier head (row) is exchanged."
    )
    return [Table.of(["exchanged", *labels(falls, "dst")], rows, caption)]


def _whole(share: float) -> str:
    return f"{100 * share:.0f}".replace("-", "−") if np.isfinite(share) else ""


def _pairs(source: Source) -> str:
    n = source.attrs.get(
        "n_test_pairs", source.attrs.get("n_pairs", source.data.sizes.get("prompt"))
    )
    if n is None:
        return ""
    text = plural(int(n), "pair")
    if dropped := len(source.attrs.get("dropped_pairs", [])):
        text += f"; {plural(dropped, 'pair')} left out, which the model does not treat as labelled"
    return f"{text}."


def _interval(source: Source) -> str:
    method = source.attrs.get("interval", "method not recorded")
    return f"Intervals: {confidence(source.attrs)} ({method})."


def answer(positions_run: Source | None, heads_run: Source | None) -> list[str]:
    """What patching found, in a sentence or two."""
    out = []
    if positions_run is not None:
        data = positions_run.data
        sites = labels(data, "site")
        site = "resid_pre" if "resid_pre" in sites else sites[0]
        (layer, position), value = best_place(data, site)
        into = str(positions_run.attrs.get("interchange", "sufficiency"))
        given, taken = GIVEN.get(into, GIVEN["necessity"])
        what = SITE_NAMES.get(site, site).split(" (")[0].lower()
        where = "at the input of layer" if site == "resid_pre" else "of layer"
        out.append(
            f"The {given} prompt's {what} {where} {layer}, position {minus(position)}, put into the "
            f"{taken} run, moves {value} of the difference between the prompts of a pair."
        )
    if heads_run is not None and "refusal_head" in heads_run.data:
        data = heads_run.data
        found = marked(data["refusal_head"], "layer", "head")
        if found:
            shown = [f"a{layer}.h{head}" for layer, head in found[:8]]
            more = [f"{len(found) - 8} more"] if len(found) > 8 else []
            names = listed([*shown, *more])
            parts = []
            for into in labels(data, "interchange"):
                at = data.sel(interchange=into)
                p = float(at["control_p"])
                chance = f", p = {p_value(p)}" if np.isfinite(p) else ""
                parts.append(f"{interval(*bounds(at, 'joint_recovery'))} ({into}{chance})")
            out.append(
                f"{plural(len(found), 'refusal head')} ({names}): exchanged together they move "
                f"{listed(parts)} of the difference."
            )
        else:
            out.append("No single head or small set of heads was found that decides to refuse.")
    return out


def part(study: Study) -> Part:
    """What patching runs say."""
    by_place, by_head = study.get("patch-positions"), study.get("patch-heads")
    sections = [
        *section("patch-positions", "Where the decision is", positions, by_place),
        *section("patch-heads", "Refusal heads", heads, by_head),
    ]
    reference = "Patching: Heimersheim and Nanda 2024, arXiv:2404.15255; heads: arXiv:2604.04385."
    return Part(sections, answer(by_place, by_head), reference)
