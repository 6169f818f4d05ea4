"""What exchanging activations between paired prompts does: over positions, and head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._cells import MAX_ANNOTATED, hundredths, mesh, write_values
from refusal_nn.plots._style import EMPTY, INK, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "PuOr_r"
"""Diverging, and told apart by every kind of colour vision."""

SITE_NAMES = {
    "resid_pre": "Residual stream (resid_pre)",
    "attn_out": "Attention output (attn_out)",
    "mlp_out": "MLP output (mlp_out)",
    "z": "Heads (z)",
}
INTERCHANGE_NAMES = {
    "sufficiency": "Sufficiency: into harmless prompts",
    "necessity": "Necessity: into harmful prompts",
}

MOST_LABELS = 24
"""More positions than these are not all labelled."""


def patch_positions(results: xr.Dataset) -> Figure:
    """Mean recovery over layer and position, one panel a site.

    Parameters
    ----------
    results : xarray.Dataset
        ``recovery_mean`` ``(site, layer, position)`` with ``_low`` and ``_high``, as
        :func:`refusal_nn.patching.positions` gives it; 0: as the unpatched prompt, 1: as the prompt
        the activations come from.

    Returns
    -------
    matplotlib.figure.Figure
        A dot marks cells whose interval leaves out 0; their numbers are bold.

    Raises
    ------
    RequestError
        If the means are missing.
    """
    table = _checked(results, "recovery_mean", ("site", "layer", "position"))
    table = table.sortby(["layer", "position"])
    table = table.transpose("site", "position", "layer", ...)
    sites = [str(s) for s in table["site"].values]
    n_positions = table.sizes["position"]
    with style():
        rows = 0.24 * max(n_positions, 2) if n_positions <= MOST_LABELS else 0.13 * n_positions
        figure = new_figure(height=len(sites) * (0.5 + rows) + 0.5)
        axes = np.atleast_1d(figure.subplots(len(sites), 1, sharex=True, sharey=True))
        norm = _norm(table["recovery_mean"].values)
        for ax, site in zip(axes, sites, strict=True):
            here = table.sel(site=site)
            cells = _map(ax, here["recovery_mean"].values, _clear(here, "recovery_mean"), norm)
            ax.set_title(SITE_NAMES.get(site, site))
            _every(ax.yaxis, here["position"].values)
        _every(axes[-1].xaxis, table["layer"].values)
        axes[-1].set_xlabel("layer")
        figure.supylabel("position from the end", size=8.5)
        bar = figure.colorbar(cells, ax=list(axes), pad=0.015, aspect=22, shrink=0.9)
        _finish(figure, bar, table["recovery_mean"])
    return figure


def patch_heads(results: xr.Dataset, *, alpha: float = 0.05) -> Figure:
    """Mean recovery of every head, one panel a direction of patching.

    Parameters
    ----------
    results : xarray.Dataset
        ``recovery_mean`` ``(interchange, layer, head)`` with ``_low`` and ``_high``, as
        :func:`refusal_nn.patching.heads` and :func:`~refusal_nn.patching.refusal_heads` give it, 0
        and 1 as in :func:`patch_positions`.
    alpha : float
        Without ``refusal_head`` ``(layer, head)``, heads whose ``head_p_adjusted`` is at most this
        are framed.

    Returns
    -------
    matplotlib.figure.Figure
        A dot marks heads whose interval leaves out 0; their numbers are bold. Framed: refusal heads.

    Raises
    ------
    RequestError
        If the means are missing.
    """
    table = _checked(results, "recovery_mean", ("interchange", "layer", "head"))
    table = table.sortby(["layer", "head"]).transpose("interchange", "layer", "head", ...)
    directions = [str(d) for d in table["interchange"].values]
    n_layers = table.sizes["layer"]
    framed, why = _framed(table, alpha)
    with style():
        height = 0.24 * max(n_layers, 3) if n_layers <= MOST_LABELS else 0.13 * n_layers
        figure = new_figure(height=height + 0.9)
        axes = np.atleast_1d(figure.subplots(1, len(directions), sharex=True, sharey=True))
        norm = _norm(table["recovery_mean"].values)
        for ax, direction in zip(axes, directions, strict=True):
            here = table.sel(interchange=direction)
            cells = _map(
                ax,
                here["recovery_mean"].values,
                _clear(here, "recovery_mean"),
                norm,
                room=MAX_ANNOTATED // len(directions),
            )
            marked = framed.sel(interchange=direction) if "interchange" in framed.dims else framed
            for row, column in np.argwhere(marked.transpose("layer", "head").values):
                box(ax, int(row), int(column))
            ax.set_title(INTERCHANGE_NAMES.get(direction, direction))
            ax.set_xlabel("head")
            _every(ax.xaxis, here["head"].values)
        _every(axes[0].yaxis, table["layer"].values)
        axes[0].set_ylabel("layer")
        bar = figure.colorbar(cells, ax=list(axes), pad=0.015, aspect=18, shrink=0.95)
        _finish(figure, bar, table["recovery_mean"], boxed=why if bool(framed.any()) else None)
    return figure


def _framed(table: xr.Dataset, alpha: float) -> tuple[xr.DataArray, str]:
    """Heads to frame, and what they are."""
    if "refusal_head" in table:
        return table["refusal_head"].astype(bool), "refusal head"
    if "head_p_adjusted" in table:
        return table["head_p_adjusted"] <= alpha, f"adjusted p ≤ {alpha:g}"
    return xr.zeros_like(table["recovery_mean"], dtype=bool), ""


def box(ax: Axes, row: int, column: int) -> None:
    """A frame around a cell, visible on any colour."""
    from matplotlib.patches import Rectangle

    for colour, width in (("white", 3.2), ("black", 1.6)):
        ax.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width,
                zorder=5, clip_on=False,
            )
        )  # fmt: skip


def dots(ax: Axes, marked: np.ndarray, *, size: float = 2.0) -> None:
    """A small dot in the upper right corner of marked cells."""
    rows, columns = np.nonzero(marked)
    for colour, width in (("white", size + 1.2), (INK, size)):
        ax.plot(
            columns + 0.36, rows + 0.32, linestyle="", marker="o", markersize=width, color=colour,
            markeredgewidth=0, zorder=5, label="_clear",
        )  # fmt: skip


def _checked(results: xr.Dataset, name: str, dims: tuple[str, ...]) -> xr.Dataset:
    if name not in results or set(results[name].dims) != set(dims):
        held = ", ".join(f"{v}{results[v].dims}" for v in results) or "nothing"
        raise RequestError(
            f"the figure needs {name} over ({', '.join(dims)}), but the results hold {held}; give "
            "the result of a patch run."
        )
    shown = (name, f"{name}_low", f"{name}_high", "refusal_head", "head_p_adjusted")
    return results[[n for n in shown if n in results]]


def _clear(here: xr.Dataset, name: str) -> np.ndarray:
    """Cells whose interval leaves out 0; none where there are no intervals."""
    if f"{name}_low" not in here or f"{name}_high" not in here:
        return np.zeros(here[name].shape, dtype=bool)
    low, high = here[f"{name}_low"].values, here[f"{name}_high"].values
    return (low > 0) | (high < 0)


def _norm(values: np.ndarray) -> Any:
    from matplotlib.colors import Normalize

    largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    return Normalize(-max(1.0, largest), max(1.0, largest))


def _map(
    ax: Axes, values: np.ndarray, clear: np.ndarray, norm: Any, *, room: int = MAX_ANNOTATED
) -> Any:
    cells = mesh(ax, values, norm, COLOURS, raster=values.size > 4096)
    if values.shape[1] <= room and values.shape[0] <= MOST_LABELS:
        write_values(ax, cells, values, bold=clear & (abs(values) >= 0.005), form=hundredths)
    dots(ax, clear, size=1.8 if values.shape[1] <= 2 * room else 1.0)
    return cells


def _every(axis: Any, labels: np.ndarray) -> None:
    """Labels of cells, as many as fit."""
    step = max(1, int(np.ceil(len(labels) / MOST_LABELS)))
    shown = np.arange(0, len(labels), step)
    axis.set_ticks(shown, [str(int(labels[i])).replace("-", "−") for i in shown])


def _finish(figure: Figure, bar: Any, values: xr.DataArray, *, boxed: str | None = None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bar.set_label("recovery", size=8)
    bar.outline.set_linewidth(0.5)
    handles: list[Any] = [
        Line2D([], [], marker="o", linestyle="", markersize=3, color=INK, label="interval leaves out 0")
    ]  # fmt: skip
    if boxed:
        handles.append(Patch(fill=False, edgecolor=INK, linewidth=1.6, label=boxed))
    if values.isnull().any():
        handles.append(Patch(facecolor=EMPTY, label="not measured"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
