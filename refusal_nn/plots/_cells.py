"""Cells of a heat map and the numbers in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.plots._style import EMPTY, INK

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIVERGING = "PuOr_r"
"""Told apart by every kind of colour vision."""

MOST_LABELS = 24
"""More rows or columns than these are not all labelled."""

MAX_ANNOTATED = 16
"""Up to this many columns a cell of a page-wide map is wide enough for its number."""


def mesh(ax: Axes, values: np.ndarray, norm: Any, colours: str, *, raster: bool = False) -> Any:
    """Draw cells ``[row, column]``, those without a finite value in grey.

    ``raster`` makes them one embedded picture, for maps of so many cells that each drawn on its own
    would weigh megabytes.
    """
    import matplotlib as mpl

    rows, columns = values.shape
    x, y = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    cmap = mpl.colormaps[colours].with_extremes(bad=EMPTY)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
    # cells a hair larger than their place: else the page shines through between them
    return ax.pcolormesh(
        x, y, np.ma.masked_invalid(values), cmap=cmap, norm=norm, edgecolors="face", linewidth=0.3,
        rasterized=raster,
    )  # fmt: skip


def tall(n_rows: int, least: int = 3) -> float:
    """Inches: the height of a map of so many rows, each with its number as long as they fit."""
    return 0.24 * max(n_rows, least) if n_rows <= MOST_LABELS else 0.13 * n_rows


def heat_map(
    ax: Axes,
    title: str,
    values: np.ndarray,
    dotted: np.ndarray,
    *,
    most: float,
    columns: int,
    room: int = MAX_ANNOTATED,
    **written: Any,
) -> Any:
    """Cells from ``-most`` to ``most``, some with a dot, and numbers where ``columns`` leave room.

    ``room`` is the number of columns up to which they do; ``written`` says how, for
    :func:`write_values`.
    """
    from matplotlib.colors import Normalize

    cells = mesh(ax, values, Normalize(-most, most), DIVERGING, raster=values.size > 4096)
    if columns <= room and len(values) <= MOST_LABELS:
        write_values(ax, cells, values, **written)
    dots(ax, dotted, size=1.8 if columns <= 2 * room else 1.0)
    ax.set_title(title)
    return cells


def write_values(
    ax: Axes,
    cells: Any,
    values: np.ndarray,
    *,
    haloed: np.ndarray | None = None,
    bold: np.ndarray | None = None,
    least: float = 0.0,
    form: Callable[[float], str] | None = None,
) -> None:
    """Write the number of every cell in black or white, whichever can be read on its colour.

    ``haloed`` cells get an outline, which keeps numbers readable on hatching; ``least`` is the
    lower end of a logarithmic scale; ``form`` writes a number, default :func:`short`.
    """
    from matplotlib.patheffects import withStroke

    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        at = max(value, least) if cells.norm.vmin > 0 else value
        colour = cells.cmap(cells.norm(at))
        light = np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.55
        text = ax.text(
            column, row, (form or short)(value), ha="center", va="center", size=7.5,
            color="black" if light else "white", zorder=4,
            fontweight="bold" if bold is not None and bold[row, column] else "normal",
        )  # fmt: skip
        if haloed is not None and haloed[row, column]:
            text.set_path_effects([withStroke(linewidth=2.4, foreground=colour)])


def largest(values: np.ndarray) -> float:
    """The largest absolute value; 1 where there is none above 0."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def dots(ax: Axes, marked: np.ndarray, *, size: float = 2.0) -> None:
    """A small dot in the upper right corner of marked cells."""
    rows, columns = np.nonzero(marked)
    for colour, width in (("white", size + 1.2), (INK, size)):
        ax.plot(
            columns + 0.36, rows + 0.32, linestyle="", marker="o", markersize=width, color=colour,
            markeredgewidth=0, zorder=5, label="_clear",
        )  # fmt: skip


def dot_handle(label: str) -> Any:
    """What :func:`dots` mean, for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", markersize=3, color=INK, label=label)


def box(ax: Axes, row: int, column: int, width: float = 1.6) -> None:
    """A frame around a cell, visible on any colour."""
    from matplotlib.patches import Rectangle

    for colour, wide in (("white", 2 * width), ("black", width)):
        ax.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=wide,
                zorder=5, clip_on=False,
            )
        )  # fmt: skip


def number_cells(axis: Any, labels: np.ndarray, most: int = MOST_LABELS) -> None:
    """Numbers of rows or columns, as many as fit."""
    shown = np.arange(0, len(labels), max(1, -(-len(labels) // most)))
    axis.set_ticks(shown, [str(int(labels[i])).replace("-", "−") for i in shown])


def colour_bar(
    figure: Figure, cells: Any, axes: Any, label: str, *, aspect: int, shrink: float
) -> Any:
    """The scale of a map beside it."""
    bar = figure.colorbar(cells, ax=axes, pad=0.015, aspect=aspect, shrink=shrink)
    bar.set_label(label, size=8)
    bar.outline.set_linewidth(0.5)
    return bar


def legend(figure: Figure, handles: list[Any], *values: xr.DataArray) -> None:
    """A line below the figure that says what its marks mean, and the grey of missing ``values``."""
    from matplotlib.patches import Patch

    if any(shown.isnull().any() for shown in values):
        handles = [*handles, Patch(facecolor=EMPTY, label="not measured")]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def short(value: float) -> str:
    """A number in at most five characters."""
    size = abs(value)
    text = f"{value:.0f}" if size >= 99.5 else f"{value:.1f}" if size >= 1 else f"{value:.2g}"
    if size < 0.001:
        text = "0" if size < 1e-6 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace("-", "−")


def hundredths(value: float) -> str:
    """A share to two decimals, without the sign of nothing."""
    text = f"{value:.2f}".replace("-", "−")
    return "0" if text in ("0.00", "−0.00") else text
