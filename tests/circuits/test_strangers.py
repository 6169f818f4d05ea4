"""Circuits, graphs, metrics and interventions as strangers write them: refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch
import xarray as xr

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import Circuit, export, read
from refusal_nn.contrasts import Metric
from refusal_nn.errors import InterventionError, RequestError
from refusal_nn.interventions import ActivationAddition, Patch, from_json, to_json
from refusal_nn.models._graph import graph_of
from tests.patience import within

GRAPH = EdgeGraph(n_layers=1, n_heads=2, n_kv_heads=1)
JUNK = [None, True, 5, -1, 2.5, float("nan"), 10**400, "x", "\x1b[2J", [], [[1]], {}, {"a": 1}]

SPOILT = [torch.ones(3), torch.tensor(float("nan")), 10**5000, [torch.ones(2)], {1: 2}]


def outcome(call, most: int = 700):
    """What a call returns, or None where it raises an error of ours: one short line."""
    try:
        return call()
    except RequestError as error:
        text = str(error)
    assert len(text) < most
    assert "\n" not in text
    return None


def circuit() -> Circuit:
    scores = np.where(GRAPH.mask, 0.5, np.nan)
    return Circuit(GRAPH, GRAPH.mask, scores, {"metric": "refusal-log-odds", "d_model": 4})


@pytest.mark.parametrize("value", JUNK)
@pytest.mark.parametrize("size", ["n_layers", "n_heads", "n_kv_heads", "parallel", "graph"])
def test_a_graph_is_made_of_whole_numbers_alone(size, value):
    attrs = {**GRAPH.to_attrs(), size: value}
    found = outcome(lambda: graph_of(attrs))
    assert found is None or found.to_attrs() == attrs


@pytest.mark.parametrize("size", ["n_layers", "n_heads"])
def test_a_graph_larger_than_any_is_not_made(size):
    with within(2), pytest.raises(RequestError, match="more than 50,000 readers"):
        graph_of({**GRAPH.to_attrs(), "n_kv_heads": 1, size: 99_999})


@pytest.mark.parametrize(
    "name", ["metric", "metric_tokens", "metric_against", "metric_direction", "metric_layer"]
)
@pytest.mark.parametrize("value", JUNK)
def test_a_metric_is_what_its_attributes_say_or_none(name, value):
    for metric in (Metric.refusal_log_odds([1, 2]), Metric.kl(), Metric.projection([1.0, 2.0], 1)):
        attrs = {**metric.to_attrs(), name: value}
        found = outcome(lambda attrs=attrs: Metric.from_attrs(attrs))
        assert found is None or found.to_attrs() == {**attrs, "metric_unit": found.unit}


@pytest.mark.parametrize("metric", [
    Metric.refusal_log_odds([3, 1]), Metric.logit_difference([1], [2]),
    Metric.projection([0.3, 0.4], 2), Metric.kl(),
])  # fmt: skip
def test_a_metric_comes_back_from_its_attributes(metric):
    assert (
        Metric.from_attrs(json.loads(json.dumps(metric.to_attrs()))).to_attrs() == metric.to_attrs()
    )


@pytest.mark.parametrize("value", JUNK)
@pytest.mark.parametrize(
    "field",
    ["kind", "layers", "positions", "heads", "when", "site", "direction", "coefficient", "new"],
)
def test_an_intervention_of_anything_else_is_refused(field, value):
    one = {**ActivationAddition(np.ones(4), layers=[1]).encode(), field: value}
    found = outcome(lambda: from_json(json.dumps([one])))
    assert (
        found is None
        or field == "direction"  # a list of numbers is one
        or json.loads(to_json(found))[0][field] in (value, [value])
    )


@pytest.mark.parametrize("array", [
    {"shape": [-1], "float64": "AAAAAAAA8D8="},
    {"shape": [2**62, 4], "float64": "AAAAAAAA8D8="},
    {"shape": [2], "float64": "AAAAAAAA8D8="},
    {"shape": [1], "float64": "AAAAAAAA8D8"},
    {"shape": [1], "float64": "*AAAAAAAA8D8="},
    {"shape": [1], "float64": "é" * 12},
    {"shape": [1], "float64": 5},
    {"shape": "1", "float64": "AAAAAAAA8D8="},
    {"shape": [1.0], "float64": "AAAAAAAA8D8="},
    {"shape": [1] * 100, "float64": "AAAAAAAA8D8="},
    {"shape": [1], "float64": "AAAAAAAA+H8="},
    {"float64": "AAAAAAAA8D8="},
    {"shape": [1], "float64": "AAAAAAAA8D8=", "more": 1},
])  # fmt: skip
def test_an_array_is_as_many_numbers_as_its_shape_says(array):
    one = {**Patch(value=np.ones(1)).encode(), "value": array}
    with pytest.raises(InterventionError):
        from_json(json.dumps([one]))


@pytest.mark.parametrize(
    "text", ["", "{}", "5", '["a"]', "[[]]", "[{}]", "[" * 5000, '[{"kind": "\\ud800"}]', None]
)
def test_a_record_of_interventions_is_a_list_of_them(text):
    with pytest.raises(InterventionError, match="not a list of interventions in JSON"):
        from_json(text)


def test_many_layers_are_checked_in_time():
    with within(5), pytest.raises(InterventionError, match="names 0 twice"):
        from_json(
            json.dumps([{**Patch(value=np.ones(1)).encode(), "layers": [*range(200_000), 0]}])
        )


def test_a_whole_file_comes_back(tmp_path):
    for ending in ("json", "pt"):
        path = export(circuit(), tmp_path / f"c.{ending}")
        assert (read(path, GRAPH).kept == GRAPH.mask).all()


@pytest.mark.parametrize("content", [
    b"", b"[]", b"5", b"[" * 5000, b"\xff\xfe", b'{"cfg": {}}', b'{"a": ' + b"7" * 5000 + b"}",
    b'{"a": "\\ud800"}',
])  # fmt: skip
def test_a_file_of_anything_else_is_refused(tmp_path, content):
    for ending in ("json", "pt"):
        path = tmp_path / f"c.{ending}"
        path.write_bytes(content)
        with within(5), pytest.raises(RequestError) as caught:
            read(path, GRAPH)
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [*JUNK, {"x" * 10**5: 1}, "y" * 10**5])
@pytest.mark.parametrize("keys", [
    ("cfg",), ("cfg", "n_layers"), ("cfg", "d_model"), ("nodes",), ("nodes", "m0"), ("edges",),
    ("edges", "input->m0"), ("edges", "input->m0", "score"), ("edges", "input->m0", "in_graph"),
    ("refusal_nn",), ("refusal_nn", "metric"), ("refusal_nn", "n_kv_heads"), ("refusal_nn", "model"),
])  # fmt: skip
def test_a_spoilt_file_is_read_or_refused(tmp_path, keys, value):
    path = export(circuit(), tmp_path / "c.json")
    tree = json.loads(path.read_text())
    place = tree
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(tree))
    found = outcome(lambda: read(path, GRAPH))
    assert found is None or found.n_total == GRAPH.n_edges


@pytest.mark.parametrize("value", SPOILT, ids=range(5))
@pytest.mark.parametrize(
    "key", ["cfg", "src_nodes", "edges_scores", "edges_in_graph", "neurons_in_graph", "refusal_nn"]
)
def test_a_spoilt_file_of_tensors_is_read_or_refused(tmp_path, key, value):
    path = export(circuit(), tmp_path / "c.pt")
    tree = torch.load(path, weights_only=True)
    for spoilt in ({**tree, key: value}, {**tree, "cfg": {**tree["cfg"], "d_model": value}}):
        torch.save(spoilt, path)
        outcome(lambda: read(path, GRAPH))


def test_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "c.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RequestError, match="tensors and plain data only"):
        read(tmp_path / "c.pt", GRAPH)
    assert not (tmp_path / "ran").exists()


def test_only_plain_files_are_read_and_nothing_is_written_over(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "nowhere.json").symlink_to(tmp_path / "new")
    for name in ("pipe.json", "zero.json", "a\0b.json", "x" * 5000 + ".json"):
        with within(5), pytest.raises(RequestError, match=r"is a pipe|is a device|cannot be read"):
            read(tmp_path / name, GRAPH)
    for name in ("pipe.json", "zero.json", "nowhere.json"):
        with within(5), pytest.raises(RequestError, match="exists; choose another file"):
            export(circuit(), tmp_path / name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("width", ["x", 2.5, True, [4]])
def test_a_width_that_is_no_number_is_refused(tmp_path, width):
    spoilt = Circuit(GRAPH, GRAPH.mask, None, {"d_model": width})
    with pytest.raises(RequestError, match="no whole number; pass d_model"):
        export(spoilt, tmp_path / "c.json")


def test_what_json_cannot_say_is_refused(tmp_path):
    spoilt = Circuit(
        GRAPH, GRAPH.mask, np.where(GRAPH.mask, 1.0, np.nan), {"share": float("nan"), "d_model": 4}
    )
    with pytest.raises(RequestError):
        export(spoilt, tmp_path / "c.json", "neuronpedia")


@pytest.mark.parametrize("change", [
    lambda d: d.drop_vars("src"),
    lambda d: d.assign(in_circuit=(("src", "dst"), np.full(GRAPH.mask.shape, "x", dtype=object))),
    lambda d: d.assign(in_circuit=(("src", "dst"), np.full(GRAPH.mask.shape, np.nan))),
    lambda d: d.assign(edge_score=(("src", "dst"), np.full(GRAPH.mask.shape, "x"))),
    lambda d: d.transpose(),
    lambda d: d.isel(dst=slice(2)),
    lambda d: d.assign_attrs(n_layers=50_000),
    lambda d: d.drop_vars("in_circuit"),
])  # fmt: skip
def test_a_dataset_that_holds_no_circuit_is_refused(change):
    with within(5), pytest.raises(RequestError):
        Circuit.from_dataset(change(circuit().to_dataset()))


def test_a_dataset_of_a_circuit_comes_back():
    table: xr.Dataset = circuit().to_dataset()
    assert (Circuit.from_dataset(table).kept == GRAPH.mask).all()
