"""Attribution scores: of every edge as a matrix, and of every head and MLP by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.plots._cells import (
    DIVERGING,
    colour_bar,
    dot_handle,
    heat_map,
    largest,
    legend,
    mesh,
    number_cells,
    tall,
)
from refusal_nn.plots._read import require
from refusal_nn.plots._style import MUTED, WIDTH, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refusal_nn.attribution import EdgeGraph

GIVE = "the result of an attribute run"

DECADES = 3
"""Decades below the largest |score| that the colours of the edge matrix tell apart."""

MOST_NUMBERS = 14
"""Up to this many columns the numbers of a map are written in its cells."""


def edge_scores(results: xr.Dataset) -> Figure:
    """Mean score of every edge: writers from bottom to top, readers from left to right.

    Parameters
    ----------
    results : xarray.Dataset
        ``edge_score_mean`` ``(src, dst)``: change of the metric when the edge alone is corrupted, in
        the metric's unit; attrs describe the graph.

    Returns
    -------
    matplotlib.figure.Figure
        Colours are logarithmic on both sides of 0; grey where there is no edge.

    Raises
    ------
    RequestError
        If the scores are missing or the attrs do not describe a graph.
    """
    graph, scores = _graph(results), require(results, "edge_score_mean", ("src", "dst"), GIVE)
    values = scores.sel(src=graph.src, dst=graph.dst).values
    with style():
        from matplotlib.colors import SymLogNorm

        most = largest(values)
        norm = SymLogNorm(linthresh=most / 10**DECADES, vmin=-most, vmax=most, base=10)
        figure = new_figure(height=min(0.75 * WIDTH, 1.2 + 0.085 * len(graph.src)) + 0.9)
        ax = figure.subplots()
        cells = mesh(ax, values, norm, DIVERGING, raster=True)
        _layer_rules(ax, graph)
        bar = colour_bar(figure, cells, ax, _score(results), aspect=22, shrink=0.9)
        ticks, labels = _log_ticks(most)
        bar.set_ticks(ticks, labels=labels)
        bar.minorticks_off()
        ax.set_ylabel("writer, by layer")
        ax.set_xlabel("reader, by layer")
    return figure


def node_scores(results: xr.Dataset) -> Figure:
    """Mean score of every head and MLP, layer by layer.

    Parameters
    ----------
    results : xarray.Dataset
        ``node_score`` ``(prompt, src)``, or ``edge_score`` ``(prompt, src, dst)``, which is added up
        over the edges that leave a node. Attrs describe the graph.

    Returns
    -------
    matplotlib.figure.Figure
        A dot marks nodes whose mean is more than two standard errors from 0; their numbers are bold.

    Raises
    ------
    RequestError
        If the scores are missing or the attrs do not describe a graph.
    """
    graph = _graph(results)
    scores, error = node_summary(results)
    with style():
        heads, mlps = _by_layer(scores, graph)
        clear_heads, clear_mlps = _by_layer(abs(scores) > 2 * error, graph)
        most = largest(np.hstack([heads, mlps]))
        figure = new_figure(height=tall(graph.n_layers) + 1.0)
        axes = figure.subplots(
            1, 2, sharey=True, width_ratios=[graph.n_heads, max(1, graph.n_heads / 14)]
        )
        for ax, title, values, clear in (
            (axes[0], "Heads", heads, clear_heads),
            (axes[1], "MLP", mlps, clear_mlps),
        ):
            cells = heat_map(
                ax, title, values, clear, most=most, columns=graph.n_heads, room=MOST_NUMBERS,
                bold=clear,
            )  # fmt: skip
        number_cells(axes[0].xaxis, np.arange(graph.n_heads))
        axes[0].set_xlabel("head")
        axes[1].set_xticks([])
        number_cells(axes[0].yaxis, np.arange(graph.n_layers))
        axes[0].set_ylabel("layer")
        colour_bar(figure, cells, list(axes), _score(results), aspect=18, shrink=0.95)
        legend(figure, [dot_handle("more than two standard errors from 0")])
    return figure


def node_summary(results: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean node score over prompts and its standard error, ``(src,)``; NaN error for one prompt.

    Raises
    ------
    RequestError
        If there are neither node nor edge scores of prompts.
    """
    if "node_score" in results:
        scores = results["node_score"]
    else:
        scores = require(results, "edge_score", ("prompt", "src", "dst"), GIVE).sum("dst")
    scores = scores.transpose("prompt", "src").astype(float)
    n = scores.sizes["prompt"]
    error = scores.std("prompt", ddof=1) / np.sqrt(n) if n > 1 else scores.isel(prompt=0) * np.nan
    return scores.mean("prompt"), error


def _graph(results: xr.Dataset) -> EdgeGraph:
    from refusal_nn.attribution import EdgeGraph

    return EdgeGraph.from_attrs(results.attrs)


def _score(results: xr.Dataset) -> str:
    return f"score ({results.attrs.get('metric_unit', 'nats')})"


def _by_layer(scores: xr.DataArray, graph: EdgeGraph) -> tuple[np.ndarray, np.ndarray]:
    """``[layer, head]``, and ``[layer, 1]`` of MLPs; the input is left out."""
    table = scores.sel(src=graph.src[1:]).values.reshape(graph.n_layers, graph.writers_per_layer)
    return table[:, :-1], table[:, -1:]


def _log_ticks(largest: float) -> tuple[list[float], list[str]]:
    top = int(np.floor(np.log10(largest)))
    sizes = [10.0**e for e in range(top, top - DECADES, -1)]
    ticks = [-t for t in sizes] + [0.0] + sizes[::-1]
    return ticks, [f"{t:g}".replace("-", "−") for t in ticks]


def _layer_rules(ax: Axes, graph: EdgeGraph) -> None:
    """Rules between layers, and their numbers."""
    step = max(1, -(-graph.n_layers // 16))
    rules_x = [k * graph.readers_per_layer - 0.5 for k in range(graph.n_layers + 1)]
    rules_y = [0.5 + k * graph.writers_per_layer for k in range(graph.n_layers + 1)]
    for x in rules_x:
        ax.axvline(x, color=MUTED, linewidth=0.4)
    for y in rules_y[:-1]:
        ax.axhline(y, color=MUTED, linewidth=0.4)
    shown = range(0, graph.n_layers, step)
    ax.set_xticks(
        [rules_x[k] + graph.readers_per_layer / 2 for k in shown] + [len(graph.dst) - 0.5],
        [str(k) for k in shown] + ["logits"],
    )
    # else it meets the last layer's number
    ax.get_xticklabels()[-1].set_horizontalalignment("left")
    ax.set_yticks(
        [0.0] + [rules_y[k] + graph.writers_per_layer / 2 for k in shown],
        ["input", *(str(k) for k in shown)],
    )
