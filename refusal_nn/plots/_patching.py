"""What exchanging activations between paired prompts does: over positions, and head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.plots._cells import (
    DIVERGING,
    MAX_ANNOTATED,
    MOST_LABELS,
    box,
    colour_bar,
    dot_handle,
    dots,
    hundredths,
    largest,
    legend,
    mesh,
    number_cells,
    write_values,
)
from refusal_nn.plots._read import labels, require
from refusal_nn.plots._style import EMPTY, INK, new_figure, style

if TYPE_CHECKING:
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
    table = table.sortby(["layer", "position"]).transpose("site", "position", "layer", ...)
    sites = labels(table, "site")
    n_positions = table.sizes["position"]
    with style():
        rows = 0.24 * max(n_positions, 2) if n_positions <= MOST_LABELS else 0.13 * n_positions
        figure = new_figure(height=len(sites) * (0.5 + rows) + 0.5)
        axes = np.atleast_1d(figure.subplots(len(sites), 1, sharex=True, sharey=True))
        norm = _norm(table["recovery_mean"].values)
        for ax, site in zip(axes, sites, strict=True):
            here = table.sel(site=site)
            cells = _map(ax, here, norm)
            ax.set_title(SITE_NAMES.get(site, site))
            number_cells(ax.yaxis, here["position"].values)
        number_cells(axes[-1].xaxis, table["layer"].values)
        axes[-1].set_xlabel("layer")
        figure.supylabel("position from the end", size=8.5)
        colour_bar(figure, cells, list(axes), "recovery", aspect=22, shrink=0.9)
        _legend(figure, table["recovery_mean"])
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
    table = table.sortby(["layer", "head"]).transpose("interchange", "layer", "head", ...)
    directions = labels(table, "interchange")
    n_layers = table.sizes["layer"]
    framed, why = _framed(table, alpha)
    with style():
        height = 0.24 * max(n_layers, 3) if n_layers <= MOST_LABELS else 0.13 * n_layers
        figure = new_figure(height=height + 0.9)
        axes = np.atleast_1d(figure.subplots(1, len(directions), sharex=True, sharey=True))
        norm = _norm(table["recovery_mean"].values)
        for ax, direction in zip(axes, directions, strict=True):
            here = table.sel(interchange=direction)
            cells = _map(ax, here, norm, room=MAX_ANNOTATED // len(directions))
            marked = framed.sel(interchange=direction) if "interchange" in framed.dims else framed
            for row, column in np.argwhere(marked.transpose("layer", "head").values):
                box(ax, int(row), int(column))
            ax.set_title(INTERCHANGE_NAMES.get(direction, direction))
            ax.set_xlabel("head")
            number_cells(ax.xaxis, here["head"].values)
        number_cells(axes[0].yaxis, table["layer"].values)
        axes[0].set_ylabel("layer")
        colour_bar(figure, cells, list(axes), "recovery", aspect=18, shrink=0.95)
        _legend(figure, table["recovery_mean"], boxed=why if bool(framed.any()) else None)
    return figure


def _framed(table: xr.Dataset, alpha: float) -> tuple[xr.DataArray, str]:
    """Heads to frame, and what they are."""
    if "refusal_head" in table:
        return table["refusal_head"].astype(bool), "refusal head"
    if "head_p_adjusted" in table:
        return table["head_p_adjusted"] <= alpha, f"adjusted p ≤ {alpha:g}"
    return xr.zeros_like(table["recovery_mean"], dtype=bool), ""


def _checked(results: xr.Dataset, dims: tuple[str, ...]) -> xr.Dataset:
    require(results, "recovery_mean", dims, "the result of a patch run")
    ends = ("recovery_mean", "recovery_mean_low", "recovery_mean_high")
    return results[[n for n in (*ends, "refusal_head", "head_p_adjusted") if n in results]]


def _norm(values: np.ndarray) -> Any:
    from matplotlib.colors import Normalize

    most = max(1.0, largest(values))
    return Normalize(-most, most)


def _map(ax: Axes, here: xr.Dataset, norm: Any, *, room: int = MAX_ANNOTATED) -> Any:
    """The cells of a panel; those whose interval leaves out 0 get a dot and a bold number."""
    values = here["recovery_mean"].values
    clear = np.zeros(values.shape, dtype=bool)
    if {"recovery_mean_low", "recovery_mean_high"} <= set(here):
        clear = (here["recovery_mean_low"].values > 0) | (here["recovery_mean_high"].values < 0)
    cells = mesh(ax, values, norm, DIVERGING, raster=values.size > 4096)
    if values.shape[1] <= room and values.shape[0] <= MOST_LABELS:
        write_values(ax, cells, values, bold=clear & (abs(values) >= 0.005), form=hundredths)
    dots(ax, clear, size=1.8 if values.shape[1] <= 2 * room else 1.0)
    return cells


def _legend(figure: Figure, values: xr.DataArray, *, boxed: str | None = None) -> None:
    from matplotlib.patches import Patch

    handles = [dot_handle("interval leaves out 0")]
    if boxed:
        handles.append(Patch(fill=False, edgecolor=INK, linewidth=1.6, label=boxed))
    if values.isnull().any():
        handles.append(Patch(facecolor=EMPTY, label="not measured"))
    legend(figure, handles)
