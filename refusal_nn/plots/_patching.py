"""What exchanging activations between paired prompts does: over positions, and head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.plots._cells import (
    MAX_ANNOTATED,
    box,
    colour_bar,
    dot_handle,
    heat_map,
    hundredths,
    largest,
    legend,
    number_cells,
    tall,
)
from refusal_nn.plots._read import labels, require
from refusal_nn.plots._style import INK, fitted, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
CLEAR = "interval leaves out 0"


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
    table = _checked(results, ("site", "layer", "position"))
    table = table.transpose("site", "position", "layer", ...)
    n_sites, n_positions, _ = table["recovery_mean"].shape
    with style():
        figure = new_figure(height=n_sites * (0.5 + tall(n_positions, least=2)) + 0.5)
        axes = list(figure.subplots(n_sites, 1, sharex=True, sharey=True, squeeze=False)[:, 0])
        cells = _maps(axes, table, SITE_NAMES)
        axes[-1].set_xlabel("layer")
        figure.supylabel("position from the end", size=8.5)
        colour_bar(figure, cells, axes, "recovery", aspect=22, shrink=0.9)
        legend(figure, [dot_handle(CLEAR)], table["recovery_mean"])
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
    table = _checked(results, ("interchange", "layer", "head"))
    n_directions, n_layers, _ = table["recovery_mean"].shape
    framed, why = _framed(table, alpha)
    marked = framed.broadcast_like(table["recovery_mean"]).transpose("interchange", "layer", "head")
    with style():
        from matplotlib.patches import Patch

        figure = new_figure(height=tall(n_layers) + 0.9)
        axes = list(figure.subplots(1, n_directions, sharex=True, sharey=True, squeeze=False)[0])
        cells = _maps(axes, table, INTERCHANGE_NAMES, room=MAX_ANNOTATED // n_directions)
        for panel, row, column in np.argwhere(marked.values):
            box(axes[panel], int(row), int(column))
        for ax in axes:
            ax.set_xlabel("head")
        axes[0].set_ylabel("layer")
        colour_bar(figure, cells, axes, "recovery", aspect=18, shrink=0.95)
        handles = [dot_handle(CLEAR)]
        if framed.any():
            handles.append(Patch(fill=False, edgecolor=INK, linewidth=1.6, label=why))
        legend(figure, handles, table["recovery_mean"])
    return figure


def _framed(table: xr.Dataset, alpha: float) -> tuple[xr.DataArray, str]:
    """Heads to frame, and what they are."""
    if "refusal_head" in table:
        return table["refusal_head"].astype(bool), "refusal head"
    if "head_p_adjusted" in table:
        return table["head_p_adjusted"] <= alpha, f"adjusted p ≤ {alpha:g}"
    return xr.zeros_like(table["recovery_mean"], dtype=bool), ""


def _checked(results: xr.Dataset, dims: tuple[str, str, str]) -> xr.Dataset:
    """What is fitted, by panel, row and column, the last two in order."""
    require(results, "recovery_mean", dims, "the result of a patch run")
    ends = ("recovery_mean", "recovery_mean_low", "recovery_mean_high")
    table = results[[n for n in (*ends, "refusal_head", "head_p_adjusted") if n in results]]
    return table.sortby(list(dims[1:])).transpose(*dims, ...)


def _maps(
    axes: Sequence[Axes], table: xr.Dataset, names: Mapping[str, str], *, room: int = MAX_ANNOTATED
) -> Any:
    """A panel each; cells whose interval leaves out 0 get a dot and a bold number."""
    mean = table["recovery_mean"]
    over, rows, columns = map(str, mean.dims)
    clear = xr.zeros_like(mean, dtype=bool)
    if {"recovery_mean_low", "recovery_mean_high"} <= set(table):
        clear = (table["recovery_mean_low"] > 0) | (table["recovery_mean_high"] < 0)
    most = max(1.0, largest(mean.values))
    for ax, panel in zip(axes, labels(table, over), strict=True):
        values, dotted = (of.sel({over: panel}).values for of in (mean, clear))
        cells = heat_map(
            ax, names.get(panel, fitted(panel)), values, dotted, most=most, columns=values.shape[1],
            room=room, bold=dotted & (abs(values) >= 0.005), form=hundredths,
        )  # fmt: skip
    number_cells(axes[0].xaxis, table[columns].values)
    number_cells(axes[0].yaxis, table[rows].values)
    return cells
