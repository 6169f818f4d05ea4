"""How well circuits of every size do alone, beside random circuits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._cells import legend
from refusal_nn.plots._read import bounds, labels
from refusal_nn.plots._style import (
    INK,
    LINE,
    MUTED,
    OTHER_COLOURS,
    fitted,
    new_figure,
    readable,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANKINGS = {
    "absolute": ("#0072B2", "o", "largest |score| (CMD)"),
    "signed": ("#D55E00", "s", "most supporting (CPR)"),
}
"""Colour, marker and name of a line of circuits, by how their edges are ranked."""

NULL_COLOURS = {"random": "#56B4E9", "layer-matched": "#E69F00"}
GOAL = 0.9


def faithfulness_curve(
    circuit: xr.Dataset, grid: xr.Dataset | None = None, null: xr.Dataset | None = None
) -> Figure:
    """Faithfulness by size of the circuit, and of random circuits of equal size.

    Parameters
    ----------
    circuit : xarray.Dataset
        Root of an evaluation: scalars ``faithfulness`` with ``_low`` and ``_high``; attrs ``n_kept``
        and ``n_total``.
    grid : xarray.Dataset, optional
        Its group ``grid``: ``faithfulness`` ``(ranking, fraction)`` with ``_low`` and ``_high``, and
        ``edges_kept``. 0: as the ablated model, 1: as the whole model.
    null : xarray.Dataset, optional
        Its group ``null``: ``faithfulness`` ``(null, draw)``.

    Returns
    -------
    matplotlib.figure.Figure
        Bands and bars are intervals. A column on the right has one dot a random circuit; its bar
        holds their central 95 %.

    Raises
    ------
    RequestError
        If the circuit's faithfulness or its size is missing.
    """
    needed = ("faithfulness", "faithfulness_low", "faithfulness_high")
    missing = [n for n in needed if n not in circuit]
    missing += [a for a in ("n_kept", "n_total") if a not in circuit.attrs]
    if missing:
        raise RequestError(
            f"the figure needs {', '.join(missing)}; give the result of circuit evaluate."
        )
    nulls = [] if null is None else labels(null, "null")
    with style():
        figure = new_figure(height=3.1)
        ratios = [4.2, 0.35 + 0.45 * len(nulls)] if nulls else [1]
        axes = np.atleast_1d(figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios))
        ax = axes[0]
        handles: list[Any] = []
        if grid is not None:
            handles += [
                _curve(ax, grid.sel(ranking=r), r, circuit) for r in labels(grid, "ranking")
            ]
        handles.append(_point(ax, circuit))
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, -0.1), max(high, 1.14))
        _levels(axes, circuit)
        _axis(ax, grid, circuit)
        if nulls and null is not None:
            _column(axes[1], null, nulls, circuit)
        legend(figure, handles)
    return figure


def _curve(ax: Axes, here: xr.Dataset, ranking: str, circuit: xr.Dataset) -> Any:
    """One line over the sizes that circuits really have, with its band."""
    size = 100 * here["edges_kept"].values / float(circuit.attrs["n_total"])
    value, low, high = (here[f"faithfulness{end}"].values for end in ("", "_low", "_high"))
    # what was pruned to nothing has no place on a logarithmic axis
    there = size > 0
    order = np.argsort(size[there], kind="stable")
    x, value, low, high = (v[there][order] for v in (size, value, low, high))
    other = (OTHER_COLOURS[0], "D", fitted(readable(ranking)))
    colour, marker, name = RANKINGS.get(ranking, other)
    ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    (line,) = ax.plot(
        x, value, color=colour, linewidth=1.4, marker=marker, markersize=3.6,
        label=f"best edges: {name}", zorder=3,
    )  # fmt: skip
    return line


def _point(ax: Axes, circuit: xr.Dataset) -> Any:
    x = 100 * float(circuit.attrs["n_kept"]) / float(circuit.attrs["n_total"])
    value, low, high = bounds(circuit, "faithfulness")
    ax.vlines(x, low, high, color=INK, linewidth=1.6, zorder=4)
    (dot,) = ax.plot(
        x, value, marker="D", markersize=6, color=INK, markeredgecolor="white", linestyle="",
        label="the circuit", zorder=5,
    )  # fmt: skip
    return dot


def _levels(axes: Any, circuit: xr.Dataset) -> None:
    for ax in axes:
        for level, dashes in ((0, (1, 0)), (GOAL, (2, 2)), (1, (1, 0))):
            ax.axhline(level, color=LINE, linewidth=0.9, linestyle=(0, dashes), zorder=0)
    axes[0].set_ylabel("faithfulness")
    ablation = fitted(circuit.attrs.get("ablation", ""))
    ablated = f"all edges ablated ({ablation})" if ablation else "all edges ablated"
    for text, x, level, side in (("whole model", 0.006, 1, "left"), (ablated, 0.994, 0, "right")):
        axes[0].annotate(
            text, (x, level), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", size=7, color=MUTED, va="bottom", ha=side,
        )  # fmt: skip


def _axis(ax: Axes, grid: xr.Dataset | None, circuit: xr.Dataset) -> None:
    total = float(circuit.attrs["n_total"])
    sizes = [float(circuit.attrs["n_kept"])]
    if grid is not None:
        sizes += [float(n) for n in grid["edges_kept"].values.ravel() if n > 0]
    least = 100 * min(sizes) / total
    ax.set_xscale("log")
    ax.set_xlim(0.7 * least, 130)
    ticks = [
        t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if t > 0.7 * least
    ]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel(f"edges kept (% of {int(total):,})")
    ax.set_title("Circuits by size")


def _column(ax: Axes, null: xr.Dataset, nulls: list[str], circuit: xr.Dataset) -> None:
    value = float(circuit["faithfulness"])
    ax.axhline(value, color=INK, linewidth=1.2, zorder=2)
    for i, name in enumerate(nulls):
        draws = np.sort(null["faithfulness"].sel(null=name).values)
        # spread by rank, the same for the same numbers
        across = ((np.arange(len(draws)) * 0.618034) % 1 - 0.5) * 0.5
        colour = NULL_COLOURS.get(name, OTHER_COLOURS[i % len(OTHER_COLOURS)])
        ax.plot(
            i + across, draws, linestyle="", marker="o", markersize=2.2, color=colour, alpha=0.75,
            markeredgewidth=0, zorder=3,
        )  # fmt: skip
        low, high = np.quantile(draws, (0.025, 0.975))
        ax.vlines(i + 0.36, low, high, color=colour, linewidth=2, zorder=3)
    ax.set_xticks(range(len(nulls)), [fitted(n).replace("-", "-\n") for n in nulls])
    ax.set_xlim(-0.6, len(nulls) - 0.3)
    ax.tick_params(axis="both", length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.set_title("Random, equal size")
