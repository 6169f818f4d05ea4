"""Circuits of resampled prompts, from stored scores."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import Circuit, compare, consensus, discover, stability
from refusal_nn.errors import RequestError

GRAPH = EdgeGraph(n_layers=2, n_heads=2, n_kv_heads=2)
CORE = [("input", "a0.h1<q>"), ("a0.h1", "m0"), ("m0", "a1.h0<v>"), ("a1.h0", "logits")]
RIVALS = [("m0", "logits"), ("a0.h1", "logits")]


def scores(n: int = 40, families: int = 20, seed: int = 0) -> xr.Dataset:
    """Four edges that always matter, two that tie for fifth place in half of the families each."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1e-3, (n, *GRAPH.mask.shape))
    family = np.arange(n) % families
    for edge in CORE:
        values[:, *GRAPH.index(*edge)] = -10 + rng.normal(0, 0.1, n)
    for k, edge in enumerate(RIVALS):
        values[:, *GRAPH.index(*edge)] = np.where(family % 2 == k, -2.0, 0.0)
    values = np.where(GRAPH.mask, values, np.nan)
    return xr.Dataset(
        {"edge_score": (("prompt", "src", "dst"), values)},
        coords={
            "src": GRAPH.src,
            "dst": GRAPH.dst,
            "family": ("prompt", [f"f{i}" for i in family]),
        },
        attrs={**GRAPH.to_attrs(), "metric": "refusal-log-odds"},
    )


def test_edges_that_always_matter_are_in_every_resample_and_rivals_share_a_place():
    table = scores()
    circuit = discover(table, edges=5)
    found = stability(table, circuit, n_resamples=200, seed=1)
    inclusion = found["inclusion"].values
    assert np.array_equal(np.isnan(inclusion), ~GRAPH.mask)
    assert [inclusion[GRAPH.index(*edge)] for edge in CORE] == [1.0] * 4
    shares = [inclusion[GRAPH.index(*edge)] for edge in RIVALS]
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) > 0.3
    # two resamples agree on five of five edges or four of six
    agree = shares[0] ** 2 + shares[1] ** 2
    expected = agree + (1 - agree) * 4 / 6
    assert float(found["jaccard"]) == pytest.approx(expected, abs=0.02)
    assert float(found["jaccard_low"]) == pytest.approx(4 / 6)
    assert (found["edges_kept"] == 5).all()


def test_the_consensus_is_what_enough_resamples_keep():
    table = scores()
    circuit = discover(table, edges=5)
    found = stability(table, circuit, n_resamples=50)
    assert set(consensus(found, circuit, share=1.0).edges()) == set(CORE)
    assert set(consensus(found, circuit, share=0.01).edges()) == {*CORE, *RIVALS}
    with pytest.raises(RequestError, match="share in"):
        consensus(found, circuit, share=0.0)


def test_families_are_resampled_whole():
    # one prompt a family leaves nothing that goes together; two families of twenty swing together
    steady = stability(scores(families=40), discover(scores(families=40), edges=5), seed=2)
    two = scores(families=2)
    swinging = stability(two, discover(two, edges=5), seed=2)
    # with both families drawn once they tie; otherwise one rival is in for sure
    rival = swinging["inclusion"].values[GRAPH.index(*RIVALS[0])]
    assert 0.1 < rival < 0.9
    assert float(steady["jaccard"]) > 0.7


def test_the_same_seed_gives_the_same_resamples():
    table = scores()
    circuit = discover(table, edges=5)
    first, again, other = (stability(table, circuit, seed=s, n_resamples=61) for s in (0, 0, 3))
    assert first.identical(again)
    assert not first["inclusion"].identical(other["inclusion"])


def test_one_family_cannot_be_resampled():
    table = scores(families=1)
    with pytest.raises(RequestError, match="one family"):
        stability(table, discover(table, edges=5))
    with pytest.raises(RequestError, match="at least 2"):
        stability(scores(), discover(scores(), edges=5), n_resamples=1)


def test_circuits_are_compared_edge_by_edge_and_node_by_node():
    first = Circuit.from_edges(GRAPH, CORE)
    second = Circuit.from_edges(GRAPH, [*CORE[:2], RIVALS[0]])
    table = compare({"first": first, "second": second})
    assert table["iou"].values.tolist() == [[1, 2 / 5], [2 / 5, 1]]
    # input, a0.h1, m0 in both; a1.h0 in the first
    assert table["node_iou"].values.tolist() == [[1, 3 / 4], [3 / 4, 1]]
    assert table["edges_kept"].values.tolist() == [4, 3]
    assert np.isnan(table["rank_correlation"].values).all()
    p = table["overlap_p"].sel(null="random").values
    assert np.isnan(np.diag(p)).all()
    assert p[0, 1] == p[1, 0] < 0.05


def test_equal_scores_agree_in_every_rank_and_at_every_size():
    one = discover(scores(), edges=5)
    table = compare({"a": one, "b": discover(scores(), edges=9)})
    assert np.allclose(table["rank_correlation"], 1)
    assert np.allclose(table["rank_overlap"], 1)
    assert np.allclose(table["iou_at"], 1)


def test_circuits_of_different_graphs_are_not_compared():
    other = EdgeGraph(n_layers=1, n_heads=2, n_kv_heads=2)
    with pytest.raises(RequestError, match="different graphs"):
        compare({"a": Circuit(GRAPH, GRAPH.mask), "b": Circuit(other, other.mask)})
    with pytest.raises(RequestError, match="at least two"):
        compare({"a": Circuit(GRAPH, GRAPH.mask)})
