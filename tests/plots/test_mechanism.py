"""Figures of patching, attribution and faithfulness show the numbers they are given."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refusal_nn import plots
from refusal_nn.attribution import EdgeGraph
from refusal_nn.errors import RequestError
from tests.plots import mechanism


def _cells(ax: Axes) -> np.ndarray:
    return np.ma.filled(ax.collections[0].get_array().astype(float), np.nan)


def _dots(ax: Axes) -> set[tuple[int, int]]:
    """Row and column of the cells that carry a dot."""
    marked = [line for line in ax.lines if line.get_label() == "_clear"]
    return {
        (round(float(y) - 0.32), round(float(x) - 0.36))
        for line in marked
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


def _frames(ax: Axes) -> set[tuple[int, int]]:
    return {
        (round(p.get_y() + 0.5), round(p.get_x() + 0.5))
        for p in ax.patches
        if hasattr(p, "get_width") and not p.get_fill()
    }


def test_position_maps_hold_the_means_whatever_their_order() -> None:
    table = mechanism.positions()
    shuffled = table.isel(layer=[2, 0, 3, 1], position=[4, 1, 0, 3, 2]).transpose(
        "prompt", "position", "layer", "site"
    )
    for given in (table, shuffled):
        axes = plots.patch_positions(given).axes[:3]
        for ax, site in zip(axes, table["site"].values, strict=True):
            here = table["recovery_mean"].sel(site=site).transpose("position", "layer")
            np.testing.assert_allclose(_cells(ax), here.values)


def test_a_dot_marks_the_cells_whose_interval_leaves_out_nothing() -> None:
    table = mechanism.positions()
    for ax, site in zip(plots.patch_positions(table).axes, table["site"].values, strict=False):
        here = table.sel(site=site).transpose("position", "layer", ...)
        clear = (here["recovery_mean_low"] > 0) | (here["recovery_mean_high"] < 0)
        assert _dots(ax) == {(int(r), int(c)) for r, c in np.argwhere(clear.values)}
        assert _dots(ax)


def test_position_maps_share_one_scale_centred_on_nothing() -> None:
    figure = plots.patch_positions(mechanism.positions())
    norms = {(ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for ax in figure.axes[:3]}
    assert norms == {(-1.0, 1.0)}


def test_maps_of_a_large_model_are_drawn_without_numbers_in_cells() -> None:
    large = plots.patch_positions(mechanism.positions(n_layers=80, n_positions=60))
    assert all(not ax.texts for ax in large.axes[:3])
    assert len(large.axes[0].get_yticks()) <= 24
    many = plots.patch_heads(mechanism.heads(n_layers=40, n_heads=32))
    assert all(not ax.texts for ax in many.axes[:2])
    assert len(plots.to_svg(many)) < 1_000_000


def test_head_maps_hold_the_means_and_frame_the_refusal_heads() -> None:
    table = mechanism.refusal_heads().to_dataset()
    axes = plots.patch_heads(table).axes[:2]
    for ax, interchange in zip(axes, table["interchange"].values, strict=True):
        here = table["recovery_mean"].sel(interchange=interchange)
        np.testing.assert_allclose(_cells(ax), here.transpose("layer", "head").values)
        assert _frames(ax) == {(1, 2), (2, 0)}


def test_without_refusal_heads_those_that_pass_the_test_are_framed() -> None:
    table = mechanism.heads()
    figure = plots.patch_heads(table)
    assert _frames(figure.axes[0]) == {(1, 2), (2, 0)}
    assert "adjusted p ≤ 0.05" in plots.to_svg(figure)
    none = plots.patch_heads(table.assign(head_p_adjusted=table["head_p_adjusted"] + 1))
    assert _frames(none.axes[0]) == set()
    assert "adjusted p" not in plots.to_svg(none)


def test_the_edge_matrix_holds_the_means_and_nothing_where_there_is_no_edge() -> None:
    table = mechanism.edges()
    figure = plots.edge_scores(table.isel(src=slice(None, None, -1)))
    drawn = _cells(figure.axes[0])
    np.testing.assert_allclose(drawn, table["edge_score_mean"].values)
    assert np.isnan(drawn).sum() == (~mechanism.GRAPH.mask).sum()
    norm = figure.axes[0].collections[0].norm
    assert norm.vmin == -norm.vmax
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["0", "1", "2", "3", "logits"]


def test_a_matrix_of_a_large_model_is_one_small_picture() -> None:
    graph = EdgeGraph(n_layers=12, n_heads=12, n_kv_heads=12)
    svg = plots.to_svg(plots.edge_scores(mechanism.edges(graph=graph, n=2)))
    assert len(svg) < 400_000
    assert re.search(r'href="data:image/png;base64,', svg)


def test_node_maps_add_edges_up_over_what_a_node_feeds() -> None:
    table = mechanism.edges()
    graph = mechanism.GRAPH
    total = np.nansum(table["edge_score"].values, axis=2)
    mean, error = total.mean(0), total.std(0, ddof=1) / np.sqrt(len(total))
    for given in (table, mechanism.nodes()):
        figure = plots.node_scores(given)
        heads, mlp = _cells(figure.axes[0]), _cells(figure.axes[1])
        for layer in range(graph.n_layers):
            for head in range(graph.n_heads):
                at = graph.src.index(f"a{layer}.h{head}")
                assert heads[layer, head] == pytest.approx(mean[at])
                assert ((layer, head) in _dots(figure.axes[0])) == (abs(mean[at]) > 2 * error[at])
            assert mlp[layer, 0] == pytest.approx(mean[graph.src.index(f"m{layer}")])


def _curves(ax: Axes) -> dict[str, np.ndarray]:
    return {
        str(line.get_label()): np.array(line.get_data())
        for line in ax.lines
        if str(line.get_label()).startswith("best edges")
    }


def test_faithfulness_is_drawn_over_the_sizes_that_circuits_have() -> None:
    tree = mechanism.evaluated()
    grid, root = tree["grid"].to_dataset(), tree.to_dataset()
    figure = plots.faithfulness_curve(root, grid, tree["null"].to_dataset())
    curves = _curves(figure.axes[0])
    assert len(curves) == 2
    for ranking, name in (("absolute", "largest"), ("signed", "supporting")):
        (data,) = (v for label, v in curves.items() if name in label)
        here = grid.sel(ranking=ranking)
        there = here["edges_kept"].values > 0
        np.testing.assert_allclose(
            data[0], 100 * here["edges_kept"].values[there] / root.attrs["n_total"]
        )
        np.testing.assert_allclose(data[1], here["faithfulness"].values[there])
    (dot,) = (line for line in figure.axes[0].lines if line.get_label() == "the circuit")
    np.testing.assert_allclose(
        np.ravel(dot.get_data()), [100 * root.attrs["n_kept"] / root.attrs["n_total"], 0.92]
    )


def test_every_random_circuit_has_a_dot_and_the_bar_holds_the_middle() -> None:
    tree = mechanism.evaluated()
    null = tree["null"].to_dataset()
    figure = plots.faithfulness_curve(tree.to_dataset(), None, null)
    column = figure.axes[1]
    dots = [line for line in column.lines if len(line.get_xdata()) == null.sizes["draw"]]
    for line, kind in zip(dots, null["null"].values, strict=True):
        np.testing.assert_allclose(
            np.sort(line.get_ydata()), np.sort(null["faithfulness"].sel(null=kind).values)
        )
    bars = [c.get_segments()[0][:, 1] for c in column.collections]
    for bar, kind in zip(bars, null["null"].values, strict=True):
        draws = null["faithfulness"].sel(null=kind).values
        np.testing.assert_allclose(bar, np.quantile(draws, [0.025, 0.975]))


FIGURES: dict[str, Any] = {
    "positions": lambda: plots.patch_positions(mechanism.positions()),
    "heads": lambda: plots.patch_heads(mechanism.heads()),
    "edges": lambda: plots.edge_scores(mechanism.edges()),
    "nodes": lambda: plots.node_scores(mechanism.nodes()),
    "faithfulness": lambda: plots.faithfulness_curve(
        mechanism.evaluated().to_dataset(),
        mechanism.evaluated()["grid"].to_dataset(),
        mechanism.evaluated()["null"].to_dataset(),
    ),
}


@pytest.mark.parametrize("name", list(FIGURES))
def test_the_same_results_give_the_same_bytes(name: str) -> None:
    first, second = (FIGURES[name]() for _ in range(2))
    assert isinstance(first, Figure)
    assert plots.to_svg(first) == plots.to_svg(second)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (plots.patch_positions, r"needs recovery_mean over \(site, layer, position\).*patch run"),
        (plots.patch_heads, r"recovery_mean over \(interchange, layer, head\)"),
        (plots.edge_scores, "do not describe a graph"),
        (plots.faithfulness_curve, "needs faithfulness, .*n_kept.*circuit evaluate"),
    ],
)
def test_what_is_missing_is_named(draw: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        draw(xr.Dataset({"banana": 1}))
    graph = mechanism.GRAPH.to_attrs()
    with pytest.raises(RequestError, match=r"edge_score over \(prompt, src, dst\)"):
        plots.node_scores(xr.Dataset(attrs=graph))
