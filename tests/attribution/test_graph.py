"""The graph's nodes, edges and their order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn.attribution import EdgeGraph
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import graph_of
from refusal_nn.testing import FAMILIES, tiny_model

sizes = st.builds(
    lambda layers, kv, group, parallel: EdgeGraph(layers, kv * group, kv, parallel),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
)


def test_gpt2_small_has_the_published_number_of_nodes_and_edges():
    graph = EdgeGraph(12, 12, 12)
    assert (len(graph.src), len(graph.dst), graph.n_edges) == (157, 445, 32_491)


def test_heads_feed_the_mlp_of_their_layer_unless_the_block_is_parallel():
    assert EdgeGraph(2, 2, 2).mask[EdgeGraph(2, 2, 2).src.index("a1.h0")].sum() == 2
    parallel = EdgeGraph(2, 2, 2, parallel=True)
    assert not parallel.mask[parallel.src.index("a1.h0"), parallel.dst.index("m1")]
    assert parallel.n_edges == EdgeGraph(2, 2, 2).n_edges - 4


@given(sizes)
def test_an_edge_exists_exactly_where_the_writer_runs_first(graph):
    def when(name: str, reading: bool) -> tuple[int, int]:
        if name == "input":
            return (-1, 0)
        if name == "logits":
            return (graph.n_layers, 0)
        layer = int(name[1:].split(".")[0])
        if name.startswith("a"):
            return (layer, 0 if reading else 1)
        # an MLP beside the attention reads before the attention has written
        return (layer, (0 if graph.parallel else 2) if reading else 3)

    expected = {(s, d) for s in graph.src for d in graph.dst if when(s, False) < when(d, True)}
    assert set(graph.edges()) == expected
    assert graph.n_edges == len(graph.edges()) == graph.mask.sum()
    assert all(graph.index(s, d) == (graph.src.index(s), graph.dst.index(d)) for s, d in expected)


def named_as_parts_of_one_node(src, dst, group):
    """The rule said by names: an MLP, or a head and its query or the key and value it shares."""
    reader, _, which = dst.rstrip(">").partition("<")
    if not which:
        return src == reader
    layer, head = reader.split(".h")
    shared = 1 if which == "q" else group
    return src.startswith(f"{layer}.h") and int(src.split(".h")[1]) // shared == int(head)


@given(sizes)
def test_readers_belong_to_the_writers_that_depend_on_them(graph):
    for s, src in enumerate(graph.src):
        for d, dst in enumerate(graph.dst):
            assert (src in graph.src_of(dst)) == (dst in graph.dst_of(src)) == graph.belongs[s, d]
            assert graph.belongs[s, d] == named_as_parts_of_one_node(src, dst, graph.group)
    # every query head decides one writer; a key head as many as share it
    assert len(graph.src_of("a0.h0<q>")) == 1
    assert len(graph.src_of("a0.h0<k>")) == graph.group
    assert graph.src_of("logits") == graph.dst_of("input") == ()


@given(sizes)
def test_a_graph_comes_back_from_its_attributes(graph):
    assert EdgeGraph.from_attrs(graph.to_attrs()) == graph


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_of_a_model_has_its_heads(family):
    model = tiny_model(family)
    graph = EdgeGraph.of(model.arch)
    assert graph.dst.count("m0") == 1
    assert sum(name.startswith("a0.") for name in graph.src) == model.arch.n_heads
    assert sum(name.endswith("<k>") for name in graph.dst) == 3 * model.arch.n_kv_heads
    assert graph.parallel == (family in ("phi", "neox"))


def test_the_mask_cannot_be_changed():
    with pytest.raises(ValueError):
        EdgeGraph(1, 1, 1).mask[0, 0] = False
    assert isinstance(EdgeGraph(1, 1, 1).mask, np.ndarray)


def test_nodes_and_edges_that_are_not_there_are_named():
    graph = EdgeGraph(2, 2, 1)
    with pytest.raises(RequestError, match=r"no reader 'a0\.h1<k>'"):
        graph.src_of("a0.h1<k>")
    with pytest.raises(RequestError, match="no writer 'a9'"):
        graph.dst_of("a9")
    with pytest.raises(RequestError, match="m1 comes after m0 reads"):
        graph.index("m1", "m0")
    with pytest.raises(RequestError, match="no such node"):
        graph.index("m7", "m0")
    with pytest.raises(RequestError, match="cannot share 2"):
        EdgeGraph(1, 3, 2)
    with pytest.raises(RequestError, match="needs layers and heads"):
        EdgeGraph(0, 3, 3)
    with pytest.raises(RequestError, match="parallel missing"):
        EdgeGraph.from_attrs({"n_layers": 1, "n_heads": 1, "n_kv_heads": 1})


def test_a_graph_is_read_back_by_its_kind_and_old_attrs_are_of_the_dense_one():
    graph = EdgeGraph(n_layers=2, n_heads=4, n_kv_heads=2, parallel=True)
    attrs = graph.to_attrs()
    assert attrs["graph"] == "dense"
    assert graph_of(attrs) == graph_of({k: v for k, v in attrs.items() if k != "graph"}) == graph
    with pytest.raises(RequestError, match="of kind 'feature'; known are dense"):
        graph_of({**attrs, "graph": "feature"})
