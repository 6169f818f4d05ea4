"""Circuits, and how they are chosen from scores: cases worked by hand, and properties."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import Circuit, discover
from refusal_nn.circuits._discover import choose, prune
from refusal_nn.errors import RequestError
from refusal_nn.testing import tiny_model

SMALL = EdgeGraph(n_layers=2, n_heads=2, n_kv_heads=1)
GRAPHS = [
    SMALL,
    EdgeGraph(n_layers=3, n_heads=2, n_kv_heads=2),
    EdgeGraph(n_layers=2, n_heads=2, n_kv_heads=2, parallel=True),
]


def table(graph: EdgeGraph, values: np.ndarray, metric: str = "refusal-log-odds") -> xr.Dataset:
    """Scores as attribution gives them: negative where corrupting lowers the metric."""
    values = np.where(graph.mask, values, np.nan)
    if values.ndim == 2:
        values = values[None]
    return xr.Dataset(
        {"edge_score": (("prompt", "src", "dst"), values)},
        coords={"src": graph.src, "dst": graph.dst},
        attrs={**graph.to_attrs(), "metric": metric},
    )


def scores_of(graph: EdgeGraph, named: dict[tuple[str, str], float]) -> np.ndarray:
    values = np.zeros(graph.mask.shape)
    for edge, value in named.items():
        values[graph.index(*edge)] = value
    return values


PATH = {
    ("input", "a0.h1<q>"): -5.0,
    ("a0.h1", "m0"): -4.0,
    ("m0", "a1.h0<v>"): -3.0,  # the key-value head of both query heads
    ("a1.h0", "logits"): -2.0,
}


def test_the_best_edges_are_those_whose_corruption_lowers_the_metric_most():
    values = scores_of(SMALL, {**PATH, ("input", "logits"): 9.0})
    signed = discover(table(SMALL, values), edges=4, ranking="signed")
    assert set(signed.edges()) == set(PATH)
    absolute = discover(table(SMALL, values), edges=5, ranking="absolute")
    assert set(absolute.edges()) == {*PATH, ("input", "logits")}
    assert signed.attrs["requested"] == 4


def test_corruption_raises_the_divergence_so_there_supporting_edges_are_positive():
    values = -scores_of(SMALL, PATH)
    found = discover(table(SMALL, values, "kl"), edges=4, ranking="signed")
    assert set(found.edges()) == set(PATH)


def test_what_leads_nowhere_or_comes_from_nowhere_is_pruned_to_a_fixpoint():
    dangling = {
        ("input", "a0.h0<q>"): -9.0,  # its head is read by a1.h1's query, which nothing reads
        ("a0.h0", "a1.h1<q>"): -8.0,
        ("m1", "logits"): -7.0,  # reads nothing
    }
    found = discover(table(SMALL, scores_of(SMALL, {**PATH, **dangling})), edges=7)
    assert set(found.edges()) == set(PATH)
    assert (found.attrs["requested"], found.n_kept, found.n_total) == (7, 4, SMALL.n_edges)


def test_a_key_value_head_lives_while_one_of_its_query_heads_is_read():
    kept = Circuit.from_edges(
        SMALL, [("input", "a0.h0<k>"), ("a0.h1", "logits"), ("input", "a0.h0<q>")]
    ).kept
    found = Circuit(SMALL, prune(SMALL, kept))
    # a0.h1 is read and lives off the shared key; nothing reads a0.h0, so its query goes
    assert set(found.edges()) == {("input", "a0.h0<k>"), ("a0.h1", "logits")}


def test_greedy_grows_from_the_logits_and_leaves_a_better_edge_elsewhere():
    values = scores_of(SMALL, {**PATH, ("input", "a0.h0<q>"): -50.0, ("a0.h0", "a1.h1<q>"): -50.0})
    found = discover(table(SMALL, values), edges=4, rule="greedy")
    assert set(found.edges()) == set(PATH)


def test_a_threshold_counts_in_units_of_the_metric_a_prompt():
    values = np.stack([scores_of(SMALL, PATH), 3 * scores_of(SMALL, PATH)])
    options = {"rule": "threshold", "ranking": "signed"}
    # means are 10, 8, 6 and 4; above 6 what is left of the path leads nowhere
    with pytest.raises(RequestError, match=r"among the 2 edges taken.*threshold of 4 or less"):
        discover(table(SMALL, values), threshold=6.5, **options)
    found = discover(table(SMALL, values), threshold=4, **options)
    assert found.attrs["requested"] == found.n_kept == 4


@pytest.mark.parametrize("rule", ["top", "greedy"])
def test_an_empty_circuit_is_refused_with_the_smallest_size_that_is_not(rule):
    graph = GRAPHS[1]
    values = np.random.default_rng(4).normal(size=graph.mask.shape)
    scores = table(graph, np.where(graph.mask, values, np.nan)[None])
    with pytest.raises(RequestError, match="leaves none; ask for") as caught:
        discover(scores, edges=1, rule=rule)
    enough = int(re.search(r"ask for (\d+) edges", str(caught.value)).group(1))
    assert discover(scores, edges=enough, rule=rule).n_kept
    with pytest.raises(RequestError, match="leaves none"):
        discover(scores, edges=enough - 1, rule=rule)
    for threshold in (np.nan, np.inf):
        with pytest.raises(RequestError, match="finite"):
            discover(scores, rule="threshold", threshold=threshold)
    with pytest.raises(RequestError, match="leaves none"):
        discover(scores, rule="threshold", threshold=1000)
    with pytest.raises(RequestError, match="goes with rule 'threshold'"):
        discover(scores, threshold=0.1, rule=rule)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_pruning_leaves_only_edges_on_a_path_from_the_input_to_the_logits(which, seed, share):
    graph = GRAPHS[which]
    kept = graph.mask & (np.random.default_rng(seed).random(graph.mask.shape) < share)
    left = prune(graph, kept)
    assert (prune(graph, left) == left).all()
    # by walking: a node counts if it can be reached from the input and reaches the logits
    edges = [(graph.src[s], graph.dst[d]) for s, d in np.argwhere(kept)]
    forward, back = {"input"}, set()
    for _ in graph.src:
        forward |= {w for s, d in edges if s in forward for w in graph.src_of(d)}
        back |= {s for s, d in edges if d == "logits" or back & set(graph.src_of(d))}
    walked = {
        (s, d) for s, d in edges if s in forward and (d == "logits" or back & set(graph.src_of(d)))
    }
    assert {(graph.src[s], graph.dst[d]) for s, d in np.argwhere(left)} == walked


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_every_rule_keeps_at_most_what_was_asked_for(which, seed, n):
    graph = GRAPHS[which]
    worth = np.where(graph.mask, np.random.default_rng(seed).normal(size=graph.mask.shape), np.nan)
    for rule in ("top", "greedy"):
        for ranking in ("signed", "absolute"):
            assert choose(graph, worth, n=n, rule=rule, ranking=ranking).sum() <= n
    everything = choose(graph, worth, n=graph.n_edges)
    assert (everything == graph.mask).all()


def test_it_survives_the_round_trip_through_a_dataset():
    found = discover(table(SMALL, scores_of(SMALL, PATH)), edges=4)
    back = Circuit.from_dataset(found.to_dataset())
    assert back.graph == found.graph
    assert (back.kept == found.kept).all()
    assert np.array_equal(back.scores, found.scores, equal_nan=True)
    assert back.attrs == found.attrs
    assert back.nodes == ["input", "a0.h1", "m0", "a1.h0", "a1.h1"]


def test_a_circuit_of_another_model_is_refused():
    model = tiny_model("llama")
    with pytest.raises(RequestError, match=r"2 layers.*3 layers"):
        Circuit(SMALL, SMALL.mask).check(model)
    own = EdgeGraph.of(model.arch)
    Circuit(own, own.mask).check(model)
    with pytest.raises(RequestError, match="differs from"):
        Circuit(own, own.mask, attrs={"model": "other"}).check(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"edges": 3, "fraction": 0.1}, "exactly one"),
        ({"edges": 0}, "1 to"),
        ({"fraction": 1.5}, "not in"),
        ({"rule": "threshold"}, "takes a threshold"),
        ({"edges": 3, "rule": "best"}, "unknown rule"),
        ({"edges": 3, "ranking": "up"}, "unknown ranking"),
    ],
)
def test_a_wrong_request_says_what_is_allowed(options, message):
    with pytest.raises(RequestError, match=message):
        discover(table(SMALL, np.zeros(SMALL.mask.shape)), **options)


def test_scores_with_gaps_or_of_nodes_are_refused():
    gap = table(SMALL, np.zeros(SMALL.mask.shape))
    gap["edge_score"][0, 0, 0] = np.nan
    with pytest.raises(RequestError, match="1 of the edges' scores are missing"):
        discover(gap, edges=3)
    with pytest.raises(RequestError, match="no variable 'edge_score'"):
        discover(gap.rename(edge_score="node_score"), edges=3)


def test_a_circuit_must_fit_its_graph():
    with pytest.raises(RequestError, match="no edge of"):
        Circuit(SMALL, np.ones_like(SMALL.mask))
    with pytest.raises(RequestError, match="its graph has"):
        Circuit(SMALL, np.ones((2, 2), dtype=bool))
