"""Candidate directions over layer and position: their scores, and which the rule drops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._cells import (
    DIVERGING,
    MAX_ANNOTATED,
    box,
    colour_bar,
    largest,
    legend,
    mesh,
    number_cells,
    write_values,
)
from refusal_nn.plots._style import INK, MUTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_KL = 1e-4
"""Nats: the colour scale of KL starts here; smoothed KL can be 0 or slightly below."""

DROPPED = {
    "late layer": ("///", "late layer"),
    "induce": ("\\\\\\", "does not induce"),
    "kl": ("xxx", "changes harmless output (KL)"),
}
"""Hatching by what rules a candidate out, and how the legend says it."""

OTHER_HATCH = "+++"


class Place(Protocol):
    """Anything that names a candidate, as a :class:`refusal_nn.directions.Selection` does."""

    @property
    def layer(self) -> int | None: ...
    @property
    def position(self) -> int | None: ...


def candidate_heatmaps(scores: xr.Dataset, selection: Place | None = None) -> Figure:
    """Bypass, induce and KL of every candidate direction, one panel each.

    Parameters
    ----------
    scores : xarray.Dataset
        ``bypass``, ``induce``, ``kl`` ``(position, layer)`` in nats, NaN where not measured; with
        ``dropped_by`` ``(position, layer)`` the candidates that a criterion rules out are hatched.
    selection : Place, optional
        From :func:`refusal_nn.directions.select`: its candidate is boxed.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    RequestError
        If a score or a dimension is missing.
    """
    table = _checked(scores, ("bypass", "induce", "kl"))
    n_positions, n_layers = table.sizes["position"], table.sizes["layer"]
    most = max(largest(table[name].values) for name in ("bypass", "induce"))
    kl_max = scores.attrs.get("kl_max")
    dropped = _dropped(table)
    with style():
        from matplotlib.colors import LogNorm, Normalize

        kl = table["kl"].clip(min=LEAST_KL)
        high = max(2 * float(kl_max or 0), 10 * LEAST_KL, float(kl.max().fillna(0)))
        log_odds = Normalize(-most, most)
        panels: list[tuple[str, str, Any, str]] = [
            ("bypass", "Bypass: harmful prompts, direction ablated (lower is better)", log_odds, DIVERGING),
            ("induce", "Induce: harmless prompts, direction added (higher is better)", log_odds, DIVERGING),
            ("kl", "KL: harmless prompts, direction ablated (lower is better)", LogNorm(LEAST_KL, high),
             "viridis_r"),
        ]  # fmt: skip
        figure = new_figure(height=3 * (0.62 + 0.27 * max(n_positions, 2)) + 0.55)
        axes = figure.subplots(3, 1, sharex=True, sharey=True)
        for ax, (name, title, norm, colours) in zip(axes, panels, strict=True):
            values = table[name].values
            cells = mesh(
                ax, np.maximum(values, LEAST_KL) if name == "kl" else values, norm, colours
            )
            if n_layers <= MAX_ANNOTATED:
                write_values(ax, cells, values, haloed=dropped != "", least=LEAST_KL)
            _hatch(ax, dropped)
            if selection is not None and selection.layer is not None:
                row = table["position"].values.tolist().index(selection.position)
                column = table["layer"].values.tolist().index(selection.layer)
                box(ax, row, column, width=1.8)
            bar = colour_bar(figure, cells, ax, "nats", aspect=9, shrink=0.95)
            if name == "kl":  # plain numbers: 0.01, not a power of ten set as a formula
                ticks = [t for t in (1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100) if LEAST_KL <= t <= high]
                bar.set_ticks(
                    ticks, labels=[f"{t:g}" if t > LEAST_KL else f"≤ {t:g}" for t in ticks]
                )
                bar.minorticks_off()
                if kl_max is not None and LEAST_KL < float(kl_max) < high:
                    for colour, width in ((INK, 1.6), ("white", 0.6)):
                        bar.ax.axhline(float(kl_max), color=colour, linewidth=width)
            ax.set_title(title)
        _label(axes, table)
        _legend(figure, table, dropped, selection)
    return figure


def direction_norms(candidates: xr.Dataset) -> Figure:
    """Norm of the candidate directions by layer, one line a position.

    Parameters
    ----------
    candidates : xarray.Dataset
        ``direction_norm`` ``(position, layer)``, in residual stream units.

    Returns
    -------
    matplotlib.figure.Figure
    """
    table = _checked(candidates, ("direction_norm",))
    with style():
        import matplotlib as mpl
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(height=2.4)
        ax = figure.subplots()
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, table.sizes["position"]))
        markers = "osD^vP*Xd<>"
        for i, (position, colour) in enumerate(zip(table["position"].values, colours, strict=True)):
            norm = table["direction_norm"].sel(position=position)
            ax.plot(
                table["layer"].values,
                norm.values,
                color=tuple(colour),
                marker=markers[i % len(markers)],
                markersize=3.5,
                linewidth=1.2,
                label=str(int(position)),
            )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(_layer_label(candidates))
        ax.set_ylabel("norm of difference in means")
        ax.set_ylim(bottom=0)
        figure.legend(title="position\nfrom the end", loc="outside right upper")
    return figure


def _checked(scores: xr.Dataset, names: tuple[str, ...]) -> xr.Dataset:
    missing = [n for n in names if n not in scores]
    if missing:
        raise RequestError(
            f"the table holds no {' or '.join(missing)} (it holds {', '.join(map(str, scores))}); "
            "give the result of direction extract or direction score."
        )
    for name in names:
        if set(scores[name].dims) != {"position", "layer"}:
            raise RequestError(
                f"{name} has dims {scores[name].dims}; a table of candidates has (position, layer)."
            )
    return scores.sortby(["position", "layer"]).transpose("position", "layer", ...)


def _dropped(table: xr.Dataset) -> np.ndarray:
    """The criterion that rules each candidate out, ``""`` for none: ``[position, layer]``."""
    if "dropped_by" in table:
        return np.asarray(table["dropped_by"].values, dtype=object)
    shape = (table.sizes["position"], table.sizes["layer"])
    return np.full(shape, "", dtype=object)


def _reasons(dropped: np.ndarray) -> dict[str, tuple[str, str]]:
    """Hatching and words of every criterion that rules a candidate out."""
    reasons = [str(reason) for reason in dropped.ravel() if reason]
    return {reason: DROPPED.get(reason, (OTHER_HATCH, reason)) for reason in reasons}


def _hatch(ax: Axes, dropped: np.ndarray) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    cell = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)])
    for reason, (hatch, _) in _reasons(dropped).items():
        # one patch for all cells of a reason keeps the file small and the hatching continuous
        cells = [
            Path(cell + np.array((column, row)), closed=True)
            for row, column in np.argwhere(dropped == reason)
        ]
        path = Path.make_compound_path(*cells)
        ax.add_patch(PathPatch(path, fill=False, hatch=hatch, edgecolor=MUTED, linewidth=0))


def _layer_label(scores: xr.Dataset) -> str:
    return f"layer ({scores.attrs.get('site', 'resid_pre')})"


def _label(axes: Any, table: xr.Dataset) -> None:
    positions = table["position"].values
    number_cells(axes[-1].xaxis, table["layer"].values, most=20)
    axes[-1].set_xlabel(_layer_label(table))
    axes[0].set_yticks(np.arange(len(positions)), [str(int(p)) for p in positions])
    axes[1].set_ylabel("position from the end")


def _legend(
    figure: Figure, table: xr.Dataset, dropped: np.ndarray, selection: Place | None
) -> None:
    from matplotlib.patches import Patch

    handles = []
    if selection is not None and selection.layer is not None:
        handles.append(Patch(fill=False, edgecolor=INK, linewidth=1.8, label="selected"))
    for hatch, what in _reasons(dropped).values():
        label = f"dropped: {what}"
        handles.append(
            Patch(facecolor="none", edgecolor=MUTED, linewidth=0, hatch=hatch, label=label)
        )
    legend(figure, handles, *(table[name] for name in ("bypass", "induce", "kl")))
