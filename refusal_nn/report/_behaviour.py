"""The part of a report on behaviour: rates, changes from the baseline, categories, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from refusal_nn import plots, stats
from refusal_nn.report._format import interval, percent, plural, points
from refusal_nn.report._page import Block, Paragraph, Picture, Table
from refusal_nn.report._sources import Source, labels

STYLE_NAMES = {
    "toxic": "harmful (toxic)",
    "hard": "harmless, looks harmful (hard)",
    "safe": "harmless (safe)",
}
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


def condition_name(condition: str) -> str:
    """A condition as text: ``random ablation``."""
    return condition.replace("_", " ")


def method_of(rates: xr.Dataset) -> str:
    """``95 % intervals: Wilson ...``, as the rates say of themselves."""
    confidence = float(rates.attrs.get("confidence", 0.95))
    method = str(rates.attrs.get("method", "method not recorded"))
    return f"Brackets: {100 * confidence:g} % intervals ({method})"


def cell(rates: xr.Dataset, condition: str, style: str) -> str:
    """The refusal rate of a condition on a style, with its interval; a dash where there is none."""
    if not has(rates, condition, style):
        return "–"
    at = rates.sel(intervention=condition, style=style)
    ends = (float(at[f"refusal_rate{end}"]) for end in ("", "_low", "_high"))
    return interval(*ends)


def has(rates: xr.Dataset, condition: str, style: str) -> bool:
    """Whether there is a rate for a condition on a style."""
    if condition not in labels(rates, "intervention") or style not in labels(rates, "style"):
        return False
    rate = float(rates["refusal_rate"].sel(intervention=condition, style=style))
    return not math.isnan(rate)


def coherence(rates: xr.Dataset, condition: str, style: str) -> str:
    """The share of coherent completions as text; empty where it was not measured."""
    share = _coherent(rates, condition, style)
    return "" if math.isnan(share) else percent(share)


def behaviour(source: Source) -> list[Block]:
    """Refusal rates of every condition, and their figure."""
    rates = source.groups["rates"]
    styles, conditions = labels(rates, "style"), labels(rates, "intervention")
    counts = "; ".join(f"{STYLE_NAMES.get(s, s)}: n = {_n(rates, s)}" for s in styles)
    rows = []
    for condition in conditions:
        row = [condition_name(condition)]
        for style in styles:
            row.append(cell(rates, condition, style))
            row.append(percent(_coherent(rates, condition, style)))
        rows.append(row)
    columns = [""]
    for style in styles:
        columns += [f"{STYLE_NAMES.get(style, style)}: refused", "coherent"]
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
        Table(
            columns,
            rows,
            caption=f"Refusal rates, n as in the figure. {explain} {method_of(rates)}.",
            numeric=tuple(range(1, len(columns))),
        ),
    ]


def effects(source: Source) -> list[Block]:
    """What the edits do that they are meant to do."""
    table = _changes(source, EFFECTS, "Effect: what each edit is meant to change.")
    first = _first_tokens(source.groups["rates"])
    return [block for block in (table, first) if block]


def _first_tokens(rates: xr.Dataset) -> Paragraph | None:
    """How often a refusal begins at the first token: the list of strings finds it anywhere."""
    name = "first_token_refusal_rate"
    pairs = [(c, s) for c, s in EFFECTS if name in rates and has(rates, c, s)]
    if not pairs:
        return None
    shares = [
        f"{percent(float(rates[name].sel(intervention=c, style=s)))} of {STYLE_NAMES.get(s, s)} "
        f"prompts under {condition_name(c)}"
        for c, s in pairs
    ]
    return Paragraph(
        "The strings are looked for anywhere in a completion, so one that begins to answer and then "
        "turns to refusing counts as refused. Refusal tokens are more likely than not as the very "
        f"first token for {' and '.join(shares)}."
    )


def side_effects(source: Source) -> list[Block]:
    """What the edits do beside what they are meant to do."""
    intro = (
        "A clean edit leaves alone what it is not aimed at: ablation should not make the model refuse "
        "or break on harmless prompts, and addition changes nothing where the model refuses already."
    )
    table = _changes(source, SIDE_EFFECTS, "Side effects.")
    return [Paragraph(intro), table] if table else []


def controls(source: Source) -> list[Block]:
    """What random directions of equal norm do."""
    intro = (
        "The same edits with random directions of equal norm, another draw for each prompt. If these "
        "did what the direction does, the effect would be one of size, not of direction."
    )
    table = _changes(source, CONTROLS, "Controls.")
    return [Paragraph(intro), table] if table else []


def categories(source: Source) -> list[Block]:
    """Refusal by category under the edits and without them."""
    rates = source.groups["rates"]
    if "category_refusal_rate" not in rates:
        return []
    conditions = labels(rates, "intervention")
    shown = [
        pair
        for pair in (
            ("baseline", "toxic"),
            ("ablation", "toxic"),
            ("baseline", "safe"),
            ("addition", "safe"),
        )
        if has(rates, *pair)
    ]
    if not any(condition != "baseline" for condition, _ in shown):
        shown = [(c, s) for s in labels(rates, "style") for c in conditions if has(rates, c, s)]
    rows, counted = [], []
    for category in labels(rates, "category"):
        row = [category]
        for condition, style in shown:
            at = rates.sel(intervention=condition, style=style, category=category)
            values = [float(at[f"category_refusal_rate{e}"]) for e in ("", "_low", "_high")]
            row.append(interval(*values))
            if "category_refusal_rate_n" in rates:
                counted.append(int(at["category_refusal_rate_n"]))
        rows.append(row)
    present = [n for n in counted if n]
    each = f"n = {min(present)} to {max(present)} prompts a cell" if present else ""
    if present and min(present) == max(present):
        each = f"n = {present[0]} prompts a cell"
    return [
        Picture(
            "category-rates",
            plots.category_rates(rates),
            f"Refusal rate by category. Bars: {_interval(rates)}" + (f"; {each}." if each else "."),
            "Dots with intervals: refusal rate of each category with and without the edit.",
        ),
        Table(
            ["category", *(f"{style}: {condition_name(condition)}" for condition, style in shown)],
            rows,
            caption=f"Refusal by category. {method_of(rates)}" + (f"; {each}." if each else "."),
            numeric=tuple(range(1, len(shown) + 1)),
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


def _changes(source: Source, pairs: Sequence[Pair], title: str) -> Table | None:
    """Rates against the baseline on the same prompts, and the paired change."""
    rates = source.groups["rates"]
    shown = [p for p in pairs if has(rates, *p) and has(rates, "baseline", p[1])]
    if not shown:
        return None
    confidence = float(rates.attrs.get("confidence", 0.95))
    rows, alike = [], False
    for condition, style in shown:
        change, constant = _change(source.data, condition, style, confidence)
        alike |= constant
        rows.append(
            [
                condition_name(condition),
                STYLE_NAMES.get(style, style),
                _n(rates, style),
                cell(rates, "baseline", style),
                cell(rates, condition, style),
                change,
                percent(_coherent(rates, condition, style)),
            ]
        )
    note = (
        f"{method_of(rates)}; change in percentage points with a paired bootstrap interval (BCa, whole "
        "families of prompts resampled)."
    )
    if alike:
        note += (
            " A change without brackets: every prompt changed alike, so resampling has no spread to "
            "show; the intervals of the two rates hold what is known."
        )
    return Table(
        [
            "condition",
            "prompts",
            "n",
            "refused at baseline",
            "refused",
            "change (points)",
            "coherent",
        ],
        rows,
        caption=f"{title} {note}",
        numeric=(2, 3, 4, 5, 6),
    )


def _change(data: xr.Dataset, condition: str, style: str, confidence: float) -> tuple[str, bool]:
    mask = data["style"].values == style
    after, before = (
        data["refused"].sel(intervention=name).values[mask].astype(float)
        for name in (condition, "baseline")
    )
    if len(np.unique(after - before)) == 1:
        return points(float((after - before)[0])), True
    family = data["family"].values[mask] if "family" in data.coords else None
    found = stats.paired_difference(after, before, cluster=family, confidence=confidence)
    low, high = points(float(found.low)), points(float(found.high))
    return f"{points(float(found.value))} [{low}, {high}]", False


def _n(rates: xr.Dataset, style: str) -> str:
    if "refusal_rate_n" not in rates:
        return "–"
    n = np.unique(rates["refusal_rate_n"].sel(style=style).values)
    return f"{n[0]:,}" if len(n) == 1 else f"{n.min():,}–{n.max():,}"


def _coherent(rates: xr.Dataset, condition: str, style: str) -> float:
    if "coherent_rate" not in rates:
        return math.nan
    return float(rates["coherent_rate"].sel(intervention=condition, style=style))


def _interval(rates: xr.Dataset) -> str:
    confidence = float(rates.attrs.get("confidence", 0.95))
    return f"{100 * confidence:g} % intervals ({rates.attrs.get('method', 'method not recorded')})"
