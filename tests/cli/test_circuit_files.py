"""``refusal-nn circuit export`` and ``show`` as a user runs them, on a stored circuit."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import circuits
from refusal_nn.circuits import Circuit
from refusal_nn.cli import cli
from refusal_nn.cli._circuit_files import FORMATS
from tests.plots import mechanism
from tests.report.test_sources import _save


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a circuit, one without resamples, and the scores of both."""
    folder = tmp_path_factory.mktemp("stores")
    tree = mechanism.discovered()
    hashes = {"weights_hash": tree.attrs["weights_hash"]}
    _save(tree, folder / "found", **hashes)
    _save(xr.DataTree(tree.to_dataset()), folder / "plain", **hashes)
    _save(mechanism.edges(), folder / "scores", **hashes)
    return folder


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit.from_dataset(mechanism.discovered().to_dataset())


def _run(stores: Path, *args: str | Path) -> Result:
    argv = ["circuit", *map(str, args), "--stores", str(stores)]
    return CliRunner().invoke(cli, argv, prog_name="refusal-nn")


def test_the_formats_are_those_of_the_library() -> None:
    assert tuple(circuits.FORMATS) == FORMATS


def test_an_exported_circuit_is_that_of_the_run(
    stores: Path, circuit: Circuit, tmp_path: Path
) -> None:
    for name in ("c.json", "c.pt"):
        done = _run(stores, "export", "found", "--output", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert done.stdout.strip() == str(tmp_path / name)
        back = circuits.read(tmp_path / name, circuit.graph)
        assert back.edges() == circuit.edges()
        np.testing.assert_allclose(back.scores, circuit.scores, rtol=2e-7)
        assert back.attrs["weights_hash"] == "cd" * 32
    assert torch.load(tmp_path / "c.pt", weights_only=True)["cfg"]["d_model"] == 16
    _run(stores, "export", "found", "--output", tmp_path / "c.graphml")
    found = nx.read_graphml(tmp_path / "c.graphml", force_multigraph=True)
    assert found.number_of_edges() == circuit.n_kept
    done = _run(
        stores, "export", "found", "--output", tmp_path / "np.json", "--format", "neuronpedia", "--json"
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["edges"] == {"kept": circuit.n_kept, "total": circuit.n_total}
    assert json.loads((tmp_path / "np.json").read_text())["metadata"]["scan"] == "tiny-refuser"


def test_show_lists_the_strongest_edges_and_json_all_of_them(
    stores: Path, circuit: Circuit
) -> None:
    done = _run(stores, "show", "found", "--json")
    document = json.loads(done.stdout)
    assert circuit.scores is not None
    wanted = {e: circuit.scores[circuit.graph.index(*e)] for e in circuit.edges()}
    shown = {(row["src"], row["dst"]): row["score"] for row in document["circuit"]}
    assert shown == pytest.approx(wanted)
    sizes = [abs(row["score"]) for row in document["circuit"]]
    assert sizes == sorted(sizes, reverse=True)
    assert document["nodes"] == circuit.nodes
    few = _run(stores, "show", "found", "--edges", "3")
    assert len(few.stdout.strip().splitlines()) == 4
    assert f"{circuit.n_kept - 3} more edges" in few.stderr


def test_show_draws(stores: Path, tmp_path: Path) -> None:
    done = _run(stores, "show", "found", "--output", tmp_path / "c.svg")
    assert done.exit_code == 0, done.output
    assert "token embedding (input)" in (tmp_path / "c.svg").read_text(encoding="utf-8")


def test_a_consensus_is_what_most_resamples_keep(stores: Path, circuit: Circuit) -> None:
    table = mechanism.discovered()["stability"].to_dataset()
    wanted = circuits.consensus(table, circuit, share=0.9)
    assert 0 < wanted.n_kept < circuit.n_kept
    document = json.loads(_run(stores, "show", "found", "--consensus", "0.9", "--json").stdout)
    assert {(row["src"], row["dst"]) for row in document["circuit"]} == set(wanted.edges())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "plain", "--consensus", "0.9"], "has no resamples to take a consensus of"),
        (["show", "scores"], "is a attribute-edges run, but a circuit-discover run is needed"),
        (["show", "nope"], "there is no run 'nope'"),
        (["show", "found", "--output", "c.gif"], "end the file in .svg, .png or .pdf"),
        (["export", "found", "--output", "none/c.json"], "there is no folder 'none'"),
        (["export", "found", "--output", "c.xyz"], "cannot tell the format"),
    ],
)
def test_a_wrong_request_is_one_sentence_with_code_2(
    argv: list[str], message: str, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = _run(stores, *argv)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_left_alone(stores: Path, tmp_path: Path) -> None:
    (tmp_path / "c.dot").write_text("mine")
    done = _run(stores, "export", "found", "--output", tmp_path / "c.dot")
    assert done.exit_code == 2
    assert "exists" in done.stderr
    assert (tmp_path / "c.dot").read_text() == "mine"
