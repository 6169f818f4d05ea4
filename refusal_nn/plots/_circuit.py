"""A circuit as a drawing: layers from bottom to top, heads and MLPs as boxes, edges by what they feed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._layered import place
from refusal_nn.plots._style import EMPTY, INK, LINE, MUTED, WIDTH, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from refusal_nn.circuits._parts import Arrow, Component, Parts

MAX_EDGES = 150
"""More than these are a tangle; the strongest are drawn and the figure says so."""

READERS = {
    "q": ("#0072B2", "query"),
    "k": ("#D55E00", "key"),
    "v": ("#009E73", "value"),
    "mlp": ("#AA4499", "MLP"),
    "logits": (MUTED, "logits"),
}
"""Colour of an edge by what reads it, and what that is called."""

BOX, HEIGHT, SPACE, LANE, PITCH = 0.46, 0.19, 0.12, 0.085, 0.62
"""Inches: width and height of a box, space beside it, width of a passing edge, distance of rows."""

HALF = HEIGHT / PITCH / 2
"""Rows: from the middle of a box to its upper or lower side."""

BAR, NAMES = 0.2, 1.0
"""Inches: height of a bar, width of the names of rows."""

THICKEST, THINNEST = 3.4, 0.7
"""Points: width of the strongest edge, and the least width of any."""

PORTS = {"q": -0.3, "k": 0.0, "v": 0.3}
"""Widths of a box: where on it an edge ends, query left, key middle, value right."""

Way = list[tuple[float, float, float]]
"""Vertical parts of an edge, from its writer up: their x, lower and upper end."""


@dataclass(frozen=True)
class _Layout:
    """Where everything stands; rows count from 0, below them the input and above them the logits.

    Attributes
    ----------
    boxes : list of (Component, float, int)
        Heads and MLPs with their x and row.
    ways : list of Way
        The way of every edge.
    rows : list of (int, str)
        Layer and kind of every row.
    """

    boxes: list[tuple[Component, float, int]]
    ways: list[Way]
    rows: list[tuple[int, str]]


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
    layout = _layout(taken, parallel=bool(circuit.attrs["parallel"]))
    sizes = np.array([abs(edge.score) for edge in taken.arrows])
    largest = float(np.nanmax(sizes, initial=0))
    widths = np.full(len(sizes), 1.2)
    if largest > 0:
        widths = np.maximum(THINNEST, THICKEST * np.nan_to_num(sizes) / largest)
    with style():
        figure, ax = _canvas(layout)
        _rules(ax, layout.rows)
        _draw_ties(ax, taken, layout)
        for i in np.argsort(widths, kind="stable"):  # the strongest on top
            _draw_edge(ax, taken.arrows[i], layout.ways[i], widths[i])
        _draw_boxes(ax, layout)
        _legend(figure, taken.arrows, total, largest)
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


def _layout(taken: Parts, *, parallel: bool) -> _Layout:
    """Rows by layer and kind, empty ones left out; the x of every box and the way of every edge.

    The bars at both ends are as wide as the drawing, so an edge meets them wherever it comes: it is
    placed as if it ended at a point of its own there.
    """
    kinds = {
        "kv": (0, "key-value heads"),
        "head": (1, "heads and MLP" if parallel else "heads"),
        "mlp": (1, "heads and MLP") if parallel else (2, "MLP"),
    }
    found = {c: (c.layer, *kinds[c.kind]) for c in taken.components if c.layer is not None}
    used = sorted(set(found.values()))
    row = {c.name: used.index(at) for c, at in found.items()}
    nodes: dict[Hashable, int] = {name: k + 1 for name, k in row.items()}
    widths: dict[Hashable, float] = dict.fromkeys(nodes, BOX + SPACE)
    ends: list[tuple[Hashable, Hashable]] = []
    for i, edge in enumerate(taken.arrows):
        lower, upper = (name if name in row else (i, name) for name in (edge.src, edge.dst))
        for end, bar in ((lower, 0), (upper, len(used) + 1)):
            if end not in row:
                nodes[end], widths[end] = bar, LANE
        ends.append((lower, upper))
    x, between = place(nodes, widths, [*ends, *taken.ties], lane=LANE)
    ways = []
    for (src, dst), passed in zip(ends, between, strict=False):
        low = row[src] + HALF if src in row else -1
        high = row[dst] - HALF if dst in row else len(used)
        past = [(at, k - 1 - HALF, k - 1 + HALF) for k, at in passed]
        ways.append([(x[src], low, low), *past, (x[dst], high, high)])
    boxes = [(c, x[c.name], row[c.name]) for c in found]
    return _Layout(boxes, ways, [(layer, kind) for layer, _, kind in used])


def _canvas(layout: _Layout) -> tuple[Figure, Axes]:
    n_rows = len(layout.rows)
    xs = [*(x for _, x, _ in layout.boxes), *(x for way in layout.ways for x, *_ in way)]
    half = max(max(map(abs, xs)) + BOX, (WIDTH - NAMES) / 2)
    figure = new_figure(height=(n_rows + 1.2) * PITCH + 0.55)
    figure.set_figwidth(2 * half + NAMES)
    ax = figure.subplots()
    ax.set_xlim(-half - NAMES, half + 0.02)
    ax.set_ylim(-1 - 0.35, n_rows + 0.35)
    ax.set_axis_off()
    return figure, ax


def _rules(ax: Axes, rows: list[tuple[int, str]]) -> None:
    """Names of the rows, and a rule between layers."""
    left, right = ax.get_xlim()
    before = None
    for row, (layer, kind) in enumerate(rows):
        if layer != before:
            ax.plot([left, right], [row - 0.5] * 2, color=LINE, linewidth=0.6, zorder=0)
        before = layer
        ax.text(left, row, f"layer {layer}\n{kind}", ha="left", va="center", size=7, color=MUTED)
    ax.plot([left, right], [len(rows) - 0.5] * 2, color=LINE, linewidth=0.6, zorder=0)


def _draw_edge(ax: Axes, edge: Arrow, way: Way, width: float) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    *_, (x, end, _) = way
    stops = [*way[:-1], (x + PORTS.get(edge.reader, 0.0) * BOX, end, end)]
    points = [(stops[0][0], stops[0][2])]
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
            edgecolor=READERS[edge.reader][0],
            linewidth=width,
            linestyle=(0, (3.2, 1.6)) if edge.against else "-",
            alpha=0.8,
            capstyle="butt",
            zorder=2,
        )
    )


def _draw_ties(ax: Axes, taken: Parts, layout: _Layout) -> None:
    at = {box.name: (x, row) for box, x, row in layout.boxes}
    for kv, head in taken.ties:
        (x0, row0), (x1, row1) = at[kv], at[head]
        ax.plot(
            [x0, x1], [row0 + HALF, row1 - HALF], color=MUTED, linewidth=0.8,
            linestyle=(0, (1, 1.2)), zorder=1,
        )  # fmt: skip


def _draw_boxes(ax: Axes, layout: _Layout) -> None:
    """The boxes, and the bars of the input and the logits."""
    from matplotlib.patches import FancyBboxPatch, Patch, Rectangle

    def draw(patch: Patch, x: float, y: float, name: str, size: float) -> None:
        patch.set(facecolor=EMPTY, linewidth=0.7, zorder=3)
        ax.add_patch(patch)
        ax.text(x, y, name, ha="center", va="center_baseline", size=size, zorder=4)

    for box, x, y in layout.boxes:
        shared = box.kind == "kv"
        shape = "square,pad=0.03" if box.kind == "mlp" else "round,pad=0.03,rounding_size=0.06"
        patch = FancyBboxPatch(
            (x - BOX / 2 + 0.03, y - HALF), BOX - 0.06, 2 * HALF, boxstyle=shape,
            mutation_aspect=1 / PITCH, edgecolor=MUTED if shared else INK,
            linestyle=(0, (1, 1)) if shared else "-",
        )  # fmt: skip
        draw(patch, x, y, box.name, 7)
    left, right = ax.get_xlim()
    left, right, thick = left + NAMES, right - 0.02, BAR / PITCH
    for low, name in (
        (-1 - thick, "token embedding (input)"),
        (len(layout.rows), "final residual stream (logits)"),
    ):
        bar = Rectangle((left, low), right - left, thick, edgecolor=INK)
        draw(bar, (left + right) / 2, low + thick / 2, name, 7.5)


def _legend(figure: Figure, edges: Sequence[Arrow], total: int, largest: float) -> None:
    from matplotlib.lines import Line2D

    read = {edge.reader for edge in edges}
    handles = [
        Line2D([], [], color=colour, linewidth=2.2, label=f"into {name}")
        for kind, (colour, name) in READERS.items()
        if kind in read
    ]
    if largest > 0:
        label = f"|score| {largest:.2g}"
        handles.append(Line2D([], [], color=INK, linewidth=THICKEST, label=label))
    if any(e.against for e in edges):
        handles.append(
            Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (2, 1)), label="works against")
        )
    title = f"the {len(edges)} strongest of {total:,} edges" if len(edges) < total else None
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 7), title=title,
        handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip
