"""Placement keeps order, distances and rows, uncrosses what can be uncrossed, and is the same again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_nn.plots._layered import place

LANE = 0.3


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, int], dict[int, float], list[tuple[int, int]]]:
    """A layered graph: rows, widths and edges from lower to higher rows."""
    n = draw(st.integers(2, 14))
    rows = {i: draw(st.integers(0, 5)) for i in range(n)}
    widths = {i: draw(st.sampled_from([0.5, 1.0, 2.0])) for i in range(n)}
    possible = [(a, b) for a in rows for b in rows if rows[a] < rows[b]]
    edges = draw(st.lists(st.sampled_from(possible), max_size=25)) if possible else []
    return rows, widths, edges


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_nothing_overlaps_and_edges_pass_every_row_between_their_ends(
    graph: tuple[dict[int, int], dict[int, float], list[tuple[int, int]]],
) -> None:
    rows, widths, edges = graph
    x, ways = place(rows, widths, edges, lane=LANE)
    assert set(x) == set(rows)
    taken: dict[int, list[tuple[float, float]]] = {}
    for node, at in x.items():
        taken.setdefault(rows[node], []).append((at, widths[node]))
    for (lower, upper), way in zip(edges, ways, strict=True):
        assert [row for row, _ in way] == list(range(rows[lower] + 1, rows[upper]))
        for row, at in way:
            taken.setdefault(row, []).append((at, LANE))
    for items in taken.values():
        items.sort()
        for (left, wide), (right, wider) in pairwise(items):
            assert right - left >= (wide + wider) / 2 - 1e-9


def test_crossings_that_need_not_be_are_gone() -> None:
    # every second node above is joined to its mirror image below, as badly as can be
    n = 7
    rows = {**{f"a{i}": 0 for i in range(n)}, **{f"b{i}": 1 for i in range(n)}}
    edges = [(f"a{i}", f"b{n - 1 - i}") for i in range(n)]
    x, _ = place(rows, dict.fromkeys(rows, 1.0), edges, lane=LANE)
    lower = np.argsort([x[a] for a, _ in edges])
    upper = np.argsort([x[b] for _, b in edges])
    np.testing.assert_array_equal(lower, upper)
    for a, b in edges:
        assert abs(x[a] - x[b]) < 1e-6


def test_a_lone_long_edge_runs_straight() -> None:
    # the box in row 2 stands in the way, so the edge goes round it in one line
    x, (way,) = place({"a": 0, "b": 5, "c": 2}, dict.fromkeys("abc", 1.0), [("a", "b")], lane=LANE)
    places = [x["a"], *(at for _, at in way), x["b"]]
    assert np.ptp(places) < 1e-3
    assert abs(x["c"] - way[1][1]) >= (1 + LANE) / 2 - 1e-9


def test_the_same_graph_is_placed_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = {i: int(r) for i, r in enumerate(rng.integers(0, 6, 30))}
    possible = [(a, b) for a in rows for b in rows if rows[a] < rows[b]]
    edges = [possible[i] for i in rng.choice(len(possible), 60)]
    first, second = (place(rows, dict.fromkeys(rows, 1.0), edges, lane=LANE) for _ in range(2))
    assert first == second


def test_a_graph_without_edges_stands_in_rows() -> None:
    x, ways = place({"a": 0, "b": 0}, {"a": 1.0, "b": 3.0}, [], lane=LANE)
    assert abs(x["a"] - x["b"]) == 2.0
    assert ways == []
