"""The part of a report on behaviour: rates, changes from the baseline, categories, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from refusal_nn import plots, stats
from refusal_nn.plots._read import bounds, confidence, labels, span
from refusal_nn.plots._style import STYLE_NAMES, readable
from refusal_nn.report._format import interval, percent, plural, points
from refusal_nn.report._page import Block, Paragraph, Picture, Table
from refusal_nn.report._sources import Source

EFFECTS = (("ablation", "toxic"), ("addition", "safe"))
"""Condition and style: what each edit is meant to change."""

SIDE_EFFECTS = (
    ("ablation", "hard"),
    ("ablation", "safe"),
    ("addition", "toxic"),
    ("addition", "hard"),
)
CONTROLS = (("random_ablation", "toxic"), ("random_addition", "safe"))

Pair = tuple[str, str]


def cell(rates: xr.Dataset, condition: str, style: str) -> str:
    """The refusal rate of a condition on a style, with its interval."""
    return interval(*bounds(rates.sel(intervention=condition, style=style), "refusal_rate"))


def has(rates: xr.Dataset, condition: str, style: str) -> bool:
    """Whether there is a rate for a condition on a style."""
    if condition not in labels(rates, "intervention") or style not in labels(rates, "style"):
        return False
    rate = float(rates["refusal_rate"].sel(intervention=condition, style=style))
    return not math.isnan(rate)


def coherent(rates: xr.Dataset, condition: str, style: str) -> float:
    """The share of coherent completions; NaN where it was not measured."""
    if "coherent_rate" not in rates:
        return math.nan
    return float(rates["coherent_rate"].sel(intervention=condition, style=style))


def behaviour(source: Source) -> list[Block]:
    """Refusal rates of every condition, their figure, and what the edits change as they should."""
    rates = source.groups["rates"]
    styles = labels(rates, "style")
    counts = "; ".join(f"{STYLE_NAMES.get(s, s)}: n = {_n(rates, s)}" for s in styles)
    conditions = labels(rates, "intervention")
    columns, rows = [""], [[readable(condition)] for condition in conditions]
    for style in styles:
        columns += [f"{STYLE_NAMES.get(style, style)}: refused", "coherent"]
        for row, of in zip(rows, conditions, strict=True):
            row += [cell(rates, of, style), percent(coherent(rates, of, style))]
    explain = (
        "A completion counts as refused if it holds one of the 12 published refusal strings and is "
        "coherent; broken text is neither refusal nor compliance."
    )
    return [
        Picture(
            "refusal-rates",
            plots.refusal_rates(rates),
            f"Refusal rate by condition and kind of prompt. {counts}. Bars: {_interval(rates)}. "
            "Hollow dots: random directions of equal norm. Grey ticks: share of coherent completions.",
            "Dots with intervals: refusal rate of each condition on each kind of prompt.",
        ),
        Table.of(
            columns,
            rows,
            f"Refusal rates, n as in the figure. {explain} Brackets: {_interval(rates)}.",
        ),
        *_changes(source, EFFECTS, "Effect: what each edit is meant to change."),
        *_first_tokens(rates),
    ]


def _first_tokens(rates: xr.Dataset) -> list[Block]:
    """How often a refusal begins at the first token: the list of strings finds it anywhere."""
    name = "first_token_refusal_rate"
    shares = [
        f"{percent(float(rates[name].sel(intervention=c, style=s)))} of {STYLE_NAMES.get(s, s)} "
        f"prompts under {readable(c)}"
        for c, s in EFFECTS
        if name in rates and has(rates, c, s)
    ]
    text = (
        "The strings are looked for anywhere in a completion, so one that begins to answer and then "
        "turns to refusing counts as refused. Refusal tokens are more likely than not as the very "
        f"first token for {' and '.join(shares)}."
    )
    return [Paragraph(text)] if shares else []


def side_effects(source: Source) -> list[Block]:
    """What the edits do beside what they are meant to do."""
    intro = (
        "A clean edit leaves alone what it is not aimed at: ablation should not make the model refuse "
        "or break on harmless prompts, and addition changes nothing where the model refuses already."
    )
    return _changes(source, SIDE_EFFECTS, "Side effects.", intro)


def controls(source: Source) -> list[Block]:
    """What random directions of equal norm do."""
    intro = (
        "The same edits with random directions of equal norm, another draw for each prompt. If these "
        "did what the direction does, the effect would be one of size, not of direction."
    )
    return _changes(source, CONTROLS, "Controls.", intro)


def categories(source: Source) -> list[Block]:
    """Refusal by category under the edits and without them."""
    rates = source.groups["rates"]
    if "category_refusal_rate" not in rates:
        return []
    usual = [(condition, style) for edit, style in EFFECTS for condition in ("baseline", edit)]
    shown = [pair for pair in usual if has(rates, *pair)]
    if not any(condition != "baseline" for condition, _ in shown):
        conditions = labels(rates, "intervention")
        shown = [(c, s) for s in labels(rates, "style") for c in conditions if has(rates, c, s)]
    panels = [rates.sel(intervention=c, style=s) for c, s in shown]
    rows = [
        [
            category,
            *(
                interval(*bounds(at.sel(category=category), "category_refusal_rate"))
                for at in panels
            ),
        ]
        for category in labels(rates, "category")
    ]
    each = ""
    if "category_refusal_rate_n" in rates:
        n = np.concatenate([at["category_refusal_rate_n"].values for at in panels])
        each = f"; n = {span(n[n > 0], ' to ')} prompts a cell" if n.any() else ""
    return [
        Picture(
            "category-rates",
            plots.category_rates(rates),
            f"Refusal rate by category. Bars: {_interval(rates)}{each}.",
            "Dots with intervals: refusal rate of each category with and without the edit.",
        ),
        Table.of(
            ["category", *(f"{style}: {readable(condition)}" for condition, style in shown)],
            rows,
            f"Refusal by category. Brackets: {_interval(rates)}{each}.",
        ),
    ]


def score_figure(source: Source) -> list[Block]:
    """How the refusal score moves under each condition."""
    data = source.data
    if "refusal_score" not in data or not np.isfinite(data["refusal_score"].values).any():
        return []
    return [
        Picture(
            "score-distributions",
            plots.score_distributions(data),
            f"Refusal score of {plural(data.sizes['prompt'], 'test prompt')} under each condition: the "
            "log-odds, at the last token of the prompt, that the answer starts with a refusal token. "
            "Each row is scaled to its own tallest bin; triangles are medians.",
            "Histograms of refusal scores by style of prompt, one row for each condition.",
        )
    ]


def _changes(source: Source, pairs: Sequence[Pair], title: str, intro: str = "") -> list[Block]:
    """Rates against the baseline on the same prompts, and the paired change."""
    rates = source.groups["rates"]
    level = float(rates.attrs.get("confidence", 0.95))
    rows, alike = [], False
    for condition, style in pairs:
        if not (has(rates, condition, style) and has(rates, "baseline", style)):
            continue
        change, constant = _change(source.data, condition, style, level)
        alike |= constant
        rows.append(
            [
                readable(condition),
                STYLE_NAMES.get(style, style),
                _n(rates, style),
                cell(rates, "baseline", style),
                cell(rates, condition, style),
                change,
                percent(coherent(rates, condition, style)),
            ]
        )
    if not rows:
        return []
    note = (
        f"Brackets: {_interval(rates)}; change in percentage points with a paired bootstrap interval "
        "(BCa, whole families of prompts resampled)."
    )
    if alike:
        note += (
            " A change without brackets: every prompt changed alike, so resampling has no spread to "
            "show; the intervals of the two rates hold what is known."
        )
    columns = ["condition", "prompts", "n", "refused at baseline", "refused", "change (points)"]
    table = Table.of([*columns, "coherent"], rows, f"{title} {note}", words=2)
    return [Paragraph(intro), table] if intro else [table]


def _change(data: xr.Dataset, condition: str, style: str, level: float) -> tuple[str, bool]:
    mask = data["style"].values == style
    after, before = (
        data["refused"].sel(intervention=name).values[mask].astype(float)
        for name in (condition, "baseline")
    )
    if len(np.unique(after - before)) == 1:
        return points(float((after - before)[0])), True
    family = data["family"].values[mask] if "family" in data.coords else None
    found = stats.paired_difference(after, before, cluster=family, confidence=level)
    low, high = points(float(found.low)), points(float(found.high))
    return f"{points(float(found.value))} [{low}, {high}]", False


def _n(rates: xr.Dataset, style: str) -> str:
    if "refusal_rate_n" not in rates:
        return "–"
    return span(rates["refusal_rate_n"].sel(style=style).values)


def _interval(rates: xr.Dataset) -> str:
    return (
        f"{confidence(rates.attrs)} intervals ({rates.attrs.get('method', 'method not recorded')})"
    )
