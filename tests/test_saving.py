"""Whatever an analysis returns can be kept as a run by ``rn.save``, with what it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

import refusal_nn as rn


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset | xr.DataTree]:
    model, pairs = rn.load_model("tiny-refuser"), rn.load_pairs("tiny-pairs")
    train, test = pairs.train[:6], pairs.test[:6]
    (token,) = rn.directions.parse_tokens(model, "I") or ()
    metric = rn.attribution.Metric.refusal_log_odds([token])
    edges = rn.attribution.attribute(model, train, metric, method="eap")
    circuit = rn.circuits.discover(edges, fraction=0.3)
    one = {"metric": metric, "layers": [3], "screen": False}
    return {
        "activations": rn.tracing.capture(
            model, rn.load_prompts("tiny-bench").test[:4], layers=[2]
        ),
        "edges": edges,
        "nodes": rn.attribution.attribute(model, train, metric, method="atp", level="node"),
        "circuit": circuit.to_dataset(),
        "stability": rn.circuits.stability(edges, circuit, n_resamples=20),
        "tested": rn.circuits.evaluate(
            model, circuit, test, metric, draws=2, grid=False, n_resamples=200
        ),
        "positions": rn.patching.positions(model, train, sites=("resid_pre",), **one),
        "heads": rn.patching.heads(model, train, **one),
    }


@pytest.mark.parametrize(
    "name",
    ["activations", "edges", "nodes", "circuit", "stability", "tested", "positions", "heads"],
)
def test_a_result_can_be_saved_and_says_what_it_is_of(results, name: str, tmp_path: Path) -> None:
    path = rn.save(results[name], tmp_path / name)
    found = xr.open_datatree(path, engine="zarr")
    assert found.attrs["model"] == "tiny-refuser"
    assert len(found.attrs["prompts_hash"]) == 64
    assert not rn.store.problems(path)
