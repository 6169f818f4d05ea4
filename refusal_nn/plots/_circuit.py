"""A circuit as a drawing: layers from bottom to top, heads and MLPs as boxes, edges by what they feed."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._layered import place
from refusal_nn.plots._style import EMPTY, INK, LINE, MUTED, WIDTH, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refusal_nn.circuits._parts import Arrow, Component, Parts

MAX_EDGES = 150
"""More than these are a tangle; the strongest are drawn and the figure says so."""

READER_COLOURS = {
    "q": "#0072B2",
    "k": "#D55E00",
    "v": "#009E73",
    "mlp": "#AA4499",
    "logits": MUTED,
}
"""Colour of an edge by what reads it."""

READER_NAMES = {
    "q": "into query",
    "k": "into key",
    "v": "into value",
    "mlp": "into MLP",
    "logits": "into logits",
}

BOX, HEIGHT, SPACE, LANE, PITCH = 0.46, 0.19, 0.12, 0.085, 0.62
"""Inches: width and height of a box, space beside it, width of a passing edge, distance of rows."""

BAR, NAMES = 0.2, 1.0
"""Inches: height of a bar, width of the names of rows."""

THICKEST, THINNEST = 3.4, 0.7
"""Points: width of the strongest edge, and the least width of any."""

_INPUT, _LOGITS = "input", "logits"


def circuit_drawing(circuit: xr.Dataset, *, max_edges: int = MAX_EDGES) -> Figure:
    """Draw a circuit.

    Every box is a head or an MLP of the circuit; the bars are the token embedding and the final
    residual stream. An edge runs upward from what writes to what reads, its colour says into which
    of a head's three inputs it goes, its width is its absolute score; dashed, it works against
    the metric. With grouped-query attention the key-value heads are boxes of their own (``kv1``), and
    thin grey lines lead from them to the heads that share them.

    Parameters
    ----------
    circuit : xarray.Dataset
        ``in_circuit`` ``(src, dst)`` bool, and ``edge_score`` ``(src, dst)`` or none, as
        :meth:`refusal_nn.circuits.Circuit.to_dataset` gives them, with its attrs.
    max_edges : int
        Draw at most so many, the strongest.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    RequestError
        If the variables are missing, a name is no node, or the circuit is empty.
    """
    taken, total = _taken(circuit, max_edges)
    edges = taken.arrows
    inner = [c for c in taken.components if c.layer is not None]
    level, labels = _rows(inner, parallel=bool(circuit.attrs["parallel"]))
    rows = {**level, _INPUT: -1, _LOGITS: len(labels)}
    placed, ways = _place(inner, rows, taken)
    with style():
        figure, ax = _canvas(placed, ways, len(labels))
        _rules(ax, labels)
        _draw_ties(ax, taken, placed, rows)
        widths = _widths(edges)
        for i in np.argsort(widths, kind="stable"):  # the strongest on top
            _draw_edge(ax, edges[i], ways[i], widths[i], placed, rows)
        _draw_boxes(ax, inner, placed, rows)
        _bars(ax, len(labels))
        _legend(figure, edges, total)
    return figure


def _taken(circuit: xr.Dataset, max_edges: int) -> tuple[Parts, int]:
    """The parts to draw, and of how many edges they are."""
    from refusal_nn.attribution import EdgeGraph
    from refusal_nn.circuits._parts import parts

    if "in_circuit" not in circuit or set(circuit["in_circuit"].dims) != {"src", "dst"}:
        raise RequestError(
            "a drawing needs in_circuit (src, dst); give the root of a circuit-discover run, or "
            "Circuit.to_dataset()."
        )
    graph = EdgeGraph.from_attrs(circuit.attrs)
    table = circuit.transpose("src", "dst", ...).sel(src=graph.src, dst=graph.dst)
    kept = table["in_circuit"].values.astype(bool)
    if not kept.any():
        raise RequestError("the circuit is empty: there is no edge to draw.")
    scored = "edge_score" in table and set(table["edge_score"].dims) == {"src", "dst"}
    scores = table["edge_score"].values if scored else None
    metric = str(circuit.attrs.get("metric"))
    return parts(graph, kept, scores, metric=metric, most=max_edges), int(kept.sum())


def _rows(
    inner: Sequence[Component], *, parallel: bool
) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Row of every box, empty rows left out, and each row's layer and kind."""
    level = {"kv": 0, "head": 1, "mlp": 1 if parallel else 2}
    found = {c.name: (c.layer or 0, level[c.kind]) for c in inner}
    used = sorted(set(found.values()))
    names = {0: "key-value heads", 1: "heads and MLP" if parallel else "heads", 2: "MLP"}
    return (
        {name: used.index(at) for name, at in found.items()},
        [(layer, names[kind]) for layer, kind in used],
    )


def _place(
    inner: Sequence[Component], rows: dict[str, int], taken: Parts
) -> tuple[dict[str, float], list[list[tuple[int, float]]]]:
    """The x of every box, and the way of every edge past the rows between its ends.

    The bars at both ends are as wide as the drawing, so an edge meets them wherever it comes: it is
    placed as if it ended at a point of its own there.
    """
    nodes: dict[Any, int] = {c.name: rows[c.name] + 1 for c in inner}
    widths: dict[Any, float] = dict.fromkeys(nodes, BOX + SPACE)
    ends = []
    for i, edge in enumerate(taken.arrows):
        src: Any = (i, _INPUT) if edge.src == _INPUT else edge.src
        dst: Any = (i, _LOGITS) if edge.dst == _LOGITS else edge.dst
        for node, row in ((src, 0), (dst, rows[_LOGITS] + 1)):
            if isinstance(node, tuple):
                nodes[node], widths[node] = row, LANE
        ends.append((src, dst))
    x, ways = place(nodes, widths, [*ends, *taken.ties], lane=LANE)
    full = []
    for (src, dst), way in zip(ends, ways, strict=False):
        first = [(rows[_INPUT], x[src])] if isinstance(src, tuple) else []
        last = [(rows[_LOGITS], x[dst])] if isinstance(dst, tuple) else []
        full.append([*first, *((row - 1, at) for row, at in way), *last])
    return {c.name: x[c.name] for c in inner}, full


def _canvas(
    placed: dict[str, float], ways: list[list[tuple[int, float]]], n_rows: int
) -> tuple[Figure, Axes]:
    xs = [*placed.values(), *(x for way in ways for _, x in way)]
    half = max(map(abs, xs), default=0) + BOX
    half = max(half, (WIDTH - NAMES) / 2)
    figure = new_figure(height=(n_rows + 1.2) * PITCH + 0.55)
    figure.set_figwidth(2 * half + NAMES)
    ax = figure.subplots()
    ax.set_xlim(-half - NAMES, half + 0.02)
    ax.set_ylim(-1 - 0.35, n_rows + 0.35)
    ax.set_axis_off()
    return figure, ax


def _rules(ax: Axes, labels: list[tuple[int, str]]) -> None:
    """Names of the rows, and a rule between layers."""
    left, right = ax.get_xlim()
    for row, (layer, kind) in enumerate(labels):
        first = row == 0 or labels[row - 1][0] != layer
        if first:
            ax.plot([left, right], [row - 0.5] * 2, color=LINE, linewidth=0.6, zorder=0)
        ax.text(left, row, f"layer {layer}\n{kind}", ha="left", va="center", size=7, color=MUTED)
    ax.plot([left, right], [len(labels) - 0.5] * 2, color=LINE, linewidth=0.6, zorder=0)


def _sizes(edges: Sequence[Arrow]) -> np.ndarray:
    """``|score|`` of every edge; NaN where it has none."""
    return np.array([abs(e.score) for e in edges])


def _widths(edges: Sequence[Arrow]) -> np.ndarray:
    size = _sizes(edges)
    largest = np.nanmax(size, initial=0)
    if not largest > 0:
        return np.full(len(edges), 1.2)
    return np.maximum(THINNEST, THICKEST * np.nan_to_num(size) / largest)


def _port(edge: Arrow, placed: dict[str, float]) -> float:
    """Where on its box an edge ends: query left, key middle, value right."""
    shift = {"q": -0.3, "k": 0.0, "v": 0.3}.get(edge.reader, 0.0)
    return placed[edge.dst] + shift * BOX


def _draw_edge(
    ax: Axes,
    edge: Arrow,
    way: list[tuple[int, float]],
    width: float,
    placed: dict[str, float],
    rows: dict[str, int],
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    half = HEIGHT / PITCH / 2
    stops: list[tuple[float, float, float]] = []  # x, lower and upper end of a vertical part
    if edge.src != _INPUT:
        stops.append((placed[edge.src], rows[edge.src] + half, rows[edge.src] + half))
    for row, x in way:
        if row in (rows[_INPUT], rows[_LOGITS]):
            stops.append((x, row, row))
        else:
            stops.append((x, row - half, row + half))
    if edge.dst != _LOGITS:
        at = rows[edge.dst] - half
        stops.append((_port(edge, placed), at, at))
    points: list[tuple[float, float]] = [(stops[0][0], stops[0][2])]
    codes = [Path.MOVETO]
    for (x0, _, y0), (x1, y1, y2) in pairwise(stops):
        middle = (y0 + y1) / 2
        points += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Path.CURVE4] * 3
        if y2 != y1:
            points.append((x1, y2))
            codes.append(Path.LINETO)
    ax.add_patch(
        PathPatch(
            Path(points, codes),
            fill=False,
            edgecolor=READER_COLOURS[edge.reader],
            linewidth=width,
            linestyle=(0, (3.2, 1.6)) if edge.against else "-",
            alpha=0.8,
            capstyle="butt",
            zorder=2,
        )
    )


def _draw_ties(ax: Axes, taken: Parts, placed: dict[str, float], rows: dict[str, int]) -> None:
    half = HEIGHT / PITCH / 2
    for kv, head in taken.ties:
        ax.plot(
            [placed[kv], placed[head]],
            [rows[kv] + half, rows[head] - half],
            color=MUTED,
            linewidth=0.8,
            linestyle=(0, (1, 1.2)),
            zorder=1,
        )


def _draw_boxes(
    ax: Axes, inner: Sequence[Component], placed: dict[str, float], rows: dict[str, int]
) -> None:
    from matplotlib.patches import FancyBboxPatch

    half = HEIGHT / PITCH / 2
    for box in inner:
        x, y = placed[box.name], rows[box.name]
        shared = box.kind == "kv"
        ax.add_patch(
            FancyBboxPatch(
                (x - BOX / 2 + 0.03, y - half),
                BOX - 0.06,
                2 * half,
                boxstyle="square,pad=0.03"
                if box.kind == "mlp"
                else "round,pad=0.03,rounding_size=0.06",
                mutation_aspect=1 / PITCH,
                facecolor=EMPTY,
                edgecolor=MUTED if shared else INK,
                linewidth=0.7,
                linestyle=(0, (1, 1)) if shared else "-",
                zorder=3,
            )
        )
        ax.text(x, y, box.name, ha="center", va="center_baseline", size=7, zorder=4)


def _bars(ax: Axes, n_rows: int) -> None:
    from matplotlib.patches import Rectangle

    left, right = ax.get_xlim()
    left, right = left + NAMES, right - 0.02
    for y, name in (
        (-1 - BAR / PITCH, "token embedding (input)"),
        (n_rows, "final residual stream (logits)"),
    ):
        ax.add_patch(
            Rectangle(
                (left, y), right - left, BAR / PITCH, facecolor=EMPTY, edgecolor=INK,
                linewidth=0.7, zorder=3,
            )
        )  # fmt: skip
        ax.text(
            (left + right) / 2, y + BAR / PITCH / 2, name, ha="center", va="center_baseline",
            size=7.5, zorder=4,
        )  # fmt: skip


def _legend(figure: Figure, edges: Sequence[Arrow], total: int) -> None:
    from matplotlib.lines import Line2D

    kinds = [k for k in READER_COLOURS if any(e.reader == k for e in edges)]
    handles = [
        Line2D([], [], color=READER_COLOURS[k], linewidth=2.2, label=READER_NAMES[k]) for k in kinds
    ]
    largest = np.nanmax(_sizes(edges), initial=0)
    if largest > 0:
        handles.append(
            Line2D([], [], color=INK, linewidth=THICKEST, label=f"|score| {largest:.2g}")
        )
    if any(e.against for e in edges):
        handles.append(
            Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (2, 1)), label="works against")
        )
    title = None
    if len(edges) < total:
        title = f"the {len(edges)} strongest of {total:,} edges"
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 7), title=title,
        handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip
