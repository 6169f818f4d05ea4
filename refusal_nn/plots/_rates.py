"""Refusal rates with their intervals: by condition and style, and by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._cells import legend
from refusal_nn.plots._read import bounds, confidence, labels, require, span
from refusal_nn.plots._style import (
    INK,
    LINE,
    MUTED,
    STYLE_NAMES,
    condition_colours,
    fitted,
    new_figure,
    readable,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIVE = "group 'rates' of an evaluation"

CATEGORY_PANELS: Mapping[str, tuple[str, ...]] = {
    "toxic": ("baseline", "ablation"),
    "safe": ("baseline", "addition"),
}
"""What each kind of prompt is compared under: the edit meant to change it, beside no edit."""


def refusal_rates(rates: xr.Dataset) -> Figure:
    """Refusal rate of every condition, one panel a style, with intervals.

    A dot is the share of completions that refuse and are coherent, its bar the interval; the grey
    tick is the share that is coherent at all, without which a low rate could mean broken text.

    Parameters
    ----------
    rates : xarray.Dataset
        Group ``rates`` of an evaluation: ``refusal_rate`` ``(intervention, style)`` with ``_low``,
        ``_high`` and, if there, ``_n`` and ``coherent_rate``; 0 to 1.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    RequestError
        If the rates or their intervals are missing.
    """
    require(rates, "refusal_rate", ("intervention", "style"), GIVE, bounded=True)
    names, styles = labels(rates, "intervention"), labels(rates, "style")
    colours = condition_colours(names)
    with style():
        titles = [_title(rates, one) for one in styles]
        figure, axes = _frame(0.95, [fitted(readable(n)) for n in names], titles)
        for ax, one in zip(axes, styles, strict=True):
            for row, name in enumerate(names):
                here = rates.sel(intervention=name, style=one)
                _tick(ax, here, "coherent_rate", row)
                _dot(ax, here, "", row, colours[name], hollow=name.startswith("random"))
        _legend(figure, rates)
    return figure


def category_rates(
    rates: xr.Dataset, *, panels: Mapping[str, Sequence[str]] | None = None
) -> Figure:
    """Refusal rate of every category, with intervals.

    Parameters
    ----------
    rates : xarray.Dataset
        Group ``rates`` of an evaluation: ``category_refusal_rate``
        ``(intervention, style, category)`` with ``_low`` and ``_high``; 0 to 1.
    panels : mapping, optional
        Style to the conditions shown for it, one panel each; default toxic prompts at baseline and
        under ablation, safe ones at baseline and under addition, as far as they are there.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    RequestError
        If the rates are missing, or no panel has anything to show.
    """
    dims = ("intervention", "style", "category")
    require(rates, "category_refusal_rate", dims, GIVE, bounded=True)
    shown = _panels(rates, panels)
    categories = labels(rates, "category")
    with style():
        titles = [STYLE_NAMES.get(one, fitted(one)) + _each(rates, one) for one in shown]
        figure, axes = _frame(1.0, [fitted(c) for c in categories], titles)
        for ax, (one, names) in zip(axes, shown.items(), strict=True):
            colours = condition_colours(names)
            offsets = (np.arange(len(names)) - (len(names) - 1) / 2) * min(0.3, 0.7 / len(names))
            for name, offset in zip(names, offsets, strict=True):
                for row, category in enumerate(categories):
                    here = rates.sel(intervention=name, style=one, category=category)
                    label = fitted(readable(name)) if row == 0 else None
                    _dot(ax, here, "category_", row + offset, colours[name], label=label)
            ax.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.6 / len(categories) - 0.12),
                ncols=len(names), handletextpad=0.3,
            )  # fmt: skip
    return figure


def _panels(rates: xr.Dataset, panels: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    have, styles = labels(rates, "intervention"), labels(rates, "style")
    wanted = panels if panels is not None else CATEGORY_PANELS
    shown = {s: [n for n in names if n in have] for s, names in wanted.items() if s in styles}
    shown = {s: names for s, names in shown.items() if names}
    if panels is None and not any(len(names) > 1 for names in shown.values()):
        # conditions of another study: all of them, on every style
        shown = dict.fromkeys(styles, have)
    if not shown:
        raise RequestError(
            f"no panel to show: the rates have styles {', '.join(styles)} and conditions "
            f"{', '.join(sorted(have))}."
        )
    return shown


def _frame(room: float, rows: list[str], titles: list[str]) -> tuple[Figure, list[Axes]]:
    """A panel for each title, with the same rows and an x axis of shares, 0 to 100 %."""
    figure = new_figure(height=room + 0.3 * len(rows))
    axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for ax, title in zip(axes, titles, strict=True):
        ax.set_xlim(-0.04, 1.04)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "50", "", "100"])
        ax.set_xlabel("refused (%)")
        ax.grid(axis="x", color=LINE, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_title(title, fontsize=8.5)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure, axes


def _dot(
    ax: Axes,
    here: xr.Dataset,
    prefix: str,
    y: float,
    colour: str,
    *,
    hollow: bool = False,
    label: str | None = None,
) -> None:
    rate, low, high = bounds(here, f"{prefix}refusal_rate")
    if np.isnan(rate):  # no prompt of this kind; still named in the legend
        ax.plot([], [], marker="o", linestyle="", color=colour, label=label)
        return
    ax.hlines(y, low, high, color=colour, linewidth=1.8, zorder=3)
    ax.plot(
        rate, y, marker="o", markersize=5, linestyle="", label=label, zorder=4, clip_on=False,
        markeredgecolor=colour, markerfacecolor="white" if hollow else colour, markeredgewidth=1.3,
    )  # fmt: skip


def _tick(ax: Axes, here: xr.Dataset, name: str, y: float) -> None:
    if name in here and np.isfinite(float(here[name])):
        ax.plot(
            float(here[name]), y, marker="|", markersize=11, color=MUTED, markeredgewidth=1.1,
            zorder=2, clip_on=False,
        )  # fmt: skip


def _title(rates: xr.Dataset, one: str) -> str:
    name = STYLE_NAMES.get(one, fitted(one)).replace(" (", "\n(")
    if "refusal_rate_n" not in rates:
        return name
    return f"{name}, n = {span(rates['refusal_rate_n'].sel(style=one).values)}"


def _each(rates: xr.Dataset, one: str) -> str:
    if "category_refusal_rate_n" not in rates:
        return ""
    n = rates["category_refusal_rate_n"].sel(style=one).values
    return f", n = {span(n[n > 0])} each" if n.any() else ""


def _legend(figure: Figure, rates: xr.Dataset) -> None:
    from matplotlib.lines import Line2D

    interval = f"{confidence(rates.attrs)} interval" if "confidence" in rates.attrs else "interval"
    label = f"refused and coherent, {interval}"
    handles = [Line2D([], [], marker="o", color=INK, markersize=5, label=label)]
    if "coherent_rate" in rates:
        handles.append(
            Line2D([], [], marker="|", markersize=10, linestyle="", color=MUTED, label="coherent")
        )
    legend(figure, handles)
