"""A call of an analysis as a run: what decides it, what does not, what it goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import refusal_nn as rn
from refusal_nn import runs, store
from refusal_nn.attribution import attribute
from refusal_nn.circuits import discover_circuit
from refusal_nn.circuits._circuit import PROVENANCE
from refusal_nn.errors import RequestError
from refusal_nn.runs import Analysis, analysis, declared_by
from refusal_nn.runs._results import IDENTITY, SAME_MODEL
from refusal_nn.testing import random_pairs, tiny_model
from tests.attribution._made import LOG_ODDS


class StoppedError(Exception):
    pass


def stop_at(stage: str, batch: int) -> Any:
    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, batch):
            raise StoppedError

    return progress


def scored(keep: rn.Keeping, **options: Any) -> rn.Run:
    pairs = random_pairs(6)
    given = {"method": "eap", "check": False, **options}
    return rn.record(attribute, tiny_model("llama"), pairs, LOG_ODDS, **given, keep=keep)


def test_the_batch_size_decides_no_run(tmp_path: Path) -> None:
    first = scored(rn.Keeping(tmp_path), batch_size=2)
    again = scored(rn.Keeping(tmp_path), batch_size=3)
    assert not first.reused
    assert again.reused
    assert again.path == first.path
    other = scored(rn.Keeping(tmp_path, "other"), batch_size=3)
    for name, values in first.tree.to_dataset().load().data_vars.items():
        if values.dtype.kind == "f":
            found = other.tree[str(name)].values
            np.testing.assert_allclose(found, values.values, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_keeps_the_batches_it_was_begun_with(tmp_path: Path) -> None:
    whole = scored(rn.Keeping(tmp_path, "whole"), batch_size=2)
    stopping = rn.Keeping(tmp_path, "stopped", progress=stop_at("edge_scores", 2))
    with pytest.raises(StoppedError):
        scored(stopping, batch_size=2)
    resumed = scored(replace(stopping, progress=None), batch_size=5)
    assert resumed.attrs["attempts"] == 2
    assert resumed.attrs["speed"] == {"batch_size": 2}
    xr.testing.assert_equal(whole.tree.to_dataset().load(), resumed.tree.to_dataset().load())


def test_a_version_of_one_analysis_leaves_the_runs_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = scored(rn.Keeping(tmp_path))
    kept = rn.record(discover_circuit, scores, edges=20, keep=rn.Keeping(tmp_path))
    declared = declared_by(discover_circuit)
    monkeypatch.setattr(discover_circuit, "analysis", replace(declared, version=2))
    anew = rn.record(discover_circuit, scores, edges=20, keep=rn.Keeping(tmp_path))
    assert anew.path != kept.path
    assert anew.attrs["analysis_version"] == 2
    assert scored(rn.Keeping(tmp_path)).reused


def test_a_result_in_memory_a_saved_one_and_a_run_are_inputs_alike(tmp_path: Path) -> None:
    run = scored(rn.Keeping(tmp_path, "run"))
    memory = attribute(tiny_model("llama"), random_pairs(6), LOG_ODDS, method="eap", check=False)
    assert memory.attrs["analysis"] == "attribute-edges"
    rn.save(memory, tmp_path / "saved")
    circuits = [
        rn.record(discover_circuit, scores, edges=20, keep=rn.Keeping(tmp_path, f"circuit{i}"))
        for i, scores in enumerate((run, "run", "saved", memory))
    ]
    for circuit in circuits[1:]:
        np.testing.assert_array_equal(circuit.tree["in_circuit"], circuits[0].tree["in_circuit"])
    assert [c.attrs["inputs"][0]["run"] for c in circuits] == [
        *("run", "run", "saved", "attribute-edges")
    ]
    for name in ("saved", "circuit2"):
        store.verify(tmp_path / name)


def test_a_result_of_another_analysis_is_refused(tmp_path: Path) -> None:
    nodes = scored(rn.Keeping(tmp_path), method="atp", level="node")
    with pytest.raises(RequestError, match="is a attribute-nodes run, but a attribute-edges run"):
        rn.record(discover_circuit, nodes, edges=20, keep=rn.Keeping(tmp_path))


@analysis("toy-double", runs={"scores": "attribute-edges"})
def double(scores: xr.Dataset) -> xr.Dataset:
    return scores * 2


@analysis("toy-count")
def count(n: int) -> xr.Dataset:
    return xr.Dataset({"kl": ("layer", np.zeros(n))}, {"layer": range(n)})


def test_a_run_that_could_not_say_its_model_is_refused(tmp_path: Path) -> None:
    keep = rn.Keeping(tmp_path)
    with pytest.raises(RequestError, match="toy-count was given neither a model nor a result"):
        rn.record(count, 3, keep=keep)
    found = xr.Dataset(
        {"kl": ("layer", [1.0])},
        {"layer": [0]},
        {"analysis": "attribute-edges", "model": "mine"},
    )
    with pytest.raises(
        RequestError, match=r"'attribute-edges' does not say which model .* lack revision, weights_"
    ):
        rn.record(double, found, keep=keep)
    assert list(tmp_path.iterdir()) == []


def test_what_identifies_a_model_stands_in_its_results() -> None:
    identity = tiny_model("llama").identity()
    assert tuple(identity) == IDENTITY
    assert set(SAME_MODEL) < set(IDENTITY) <= set(PROVENANCE)


def test_a_run_is_opened_in_the_chunks_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scored(rn.Keeping(tmp_path, "run"))
    asked = []

    def given_chunks(*_: Any, **given: Any) -> xr.DataTree:
        asked.append(given["chunks"])
        return xr.DataTree()

    for name in ("open_datatree", "open_zarr"):
        # dask may not be there, and what it makes of chunks is not ours
        monkeypatch.setattr(xr, name, given_chunks)
    chunked = runs.open_run(tmp_path, "run", chunks={"prompt": 2})
    assert chunked == replace(run, reused=False, chunks={"prompt": 2})
    for opened in (chunked, runs.open_run(tmp_path, "run")):
        _ = (opened.tree, opened.open(), opened.dataset())
    assert asked == [{"prompt": 2}] * 3 + [None] * 3


def test_a_function_that_is_no_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="align is not declared as an analysis"):
        rn.record(rn.patching.align, 1, 2, keep=rn.Keeping(tmp_path))


def test_arguments_that_a_function_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unexpected keyword argument 'edgse'"):
        rn.record(discover_circuit, "scores", edgse=3, keep=rn.Keeping(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_old_functions_still_keep_runs_and_say_what_they_are_now(tmp_path: Path) -> None:
    from refusal_nn.attribution import attribute_run

    old = rn.Keeping(tmp_path, "old")
    with pytest.warns(DeprecationWarning, match=r"attribute_run is now refusal_nn\.record"):
        run = attribute_run(
            tiny_model("llama"), random_pairs(6), old, metric=LOG_ODDS, method="eap", check=False
        )
    new = scored(rn.Keeping(tmp_path, "new"))
    xr.testing.assert_equal(run.tree.to_dataset().load(), new.tree.to_dataset().load())


def test_an_old_function_refuses_arguments_it_did_not_take(tmp_path: Path) -> None:
    from refusal_nn.attribution import attribute_run

    keeping = rn.Keeping(tmp_path)
    for args, options in (
        ((1, 2, 3, keeping), {}),
        ((1, 2, 3), {"keeping": keeping}),
        ((1, keeping), {"pairs": 2}),
        ((1, 2), {}),
        ((), {}),
    ):
        with pytest.raises(TypeError, match=r"attribute_run\(\) takes model, pairs and keeping"):
            attribute_run(*args, **options)
    assert list(tmp_path.iterdir()) == []


def test_old_names_of_what_is_the_same_still_work_and_others_are_gone() -> None:
    from refusal_nn import recorded

    for old, new in (("Keeping", "Keeping"), ("Run", "Run"), ("open_input", "open_run")):
        with pytest.warns(DeprecationWarning, match=rf"recorded\.{old} is now refusal_nn\.runs"):
            assert getattr(recorded, old) is getattr(runs, new)
    for gone in ("record", "same_model"):
        with pytest.raises(AttributeError, match=gone):
            getattr(recorded, gone)


def test_every_declared_analysis_is_found_by_its_name() -> None:
    from refusal_nn._analyses import OURS, function_at

    for name, target in OURS.items():
        declared = declared_by(function_at(target))
        assert isinstance(declared, Analysis)
        assert name in {declared.name.format(level=level) for level in ("edge", "node")}
