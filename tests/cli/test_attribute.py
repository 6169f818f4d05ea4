"""The attribute command from end to end, on a tiny random model in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import store
from refusal_nn.cli import cli
from tests.attribution._made import made_pairs
from tests.families import tiny_module, tiny_tokenizer


def refusal_nn(*argv: str) -> Result:
    return CliRunner().invoke(cli, ["attribute", *map(str, argv)], prog_name="refusal-nn")


def done(*argv: str) -> Any:
    result = refusal_nn(*argv, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a file of pairs and a place for runs."""
    base = tmp_path_factory.mktemp("attribute")
    tiny_module("llama").save_pretrained(base / "tiny-llama")
    tiny_tokenizer().save_pretrained(base / "tiny-llama")
    rows = made_pairs(4).to_rows()
    (base / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows[2]["corrupted"] += " w20"
    (base / "uneven.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return base


def given(folder: Path, pairs: str = "pairs.jsonl") -> list[str]:
    return [
        *("--model", str(folder / "tiny-llama"), "--pairs", str(folder / pairs)),
        *("--split", "all", "--stores", str(folder / "stores")),
    ]


def test_edges_become_a_verified_run_that_is_found_again(folder):
    argv = [*given(folder), "--refusal-tokens", "w7,8", "--steps", "3", "--top", "4"]
    first = done(*argv)
    path = Path(first["run"])
    assert path.name.startswith("attribute-edges-tiny-llama-")
    assert (first["reused"], first["method"], first["steps"], first["pairs"]) == (
        *(False, "eap-ig", 3, 4),
    )
    store.verify(path)
    with xr.open_datatree(path, engine="zarr") as run:
        scores = run["edge_score"]
        assert scores.dims == ("prompt", "src", "dst")
        assert run.attrs["metric_tokens"] == [7, 8]
        assert str(folder) not in json.dumps(run.attrs), "no path of this machine"
        top = first["strongest"]
        assert len(top) == 4
        strongest = scores.mean("prompt").sel(src=top[0]["src"], dst=top[0]["dst"])
        assert float(strongest) == pytest.approx(top[0]["score"], rel=1e-5)
        assert abs(top[0]["score"]) == pytest.approx(
            float(np.nanmax(np.abs(run["edge_score_mean"]))), rel=1e-5
        )
    assert done(*argv) == {**first, "reused": True}


def test_nodes_can_be_patched_exactly(folder):
    found = done(
        *(*given(folder), "--level", "node", "--method", "exact"),
        *("--metric", "logit-difference", "--refusal-tokens", "w7", "--against", "w9"),
    )
    assert Path(found["run"]).name.startswith("attribute-nodes-tiny-llama-")
    change = found["corrupted_metric"] - found["clean_metric"]
    with xr.open_datatree(found["run"], engine="zarr") as run:
        assert float(run["node_score_mean"].sel(src="input")) == pytest.approx(change, rel=1e-4)


def test_a_table_is_printed_and_notices_go_to_stderr(folder):
    result = refusal_nn(*given(folder), "--metric", "kl", "--top", "2")
    assert result.exit_code == 0, result.stderr
    assert "src" in result.stdout
    assert "wrote" in result.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metric", "logit-difference", "--refusal-tokens", "w7"], "needs --against"),
        (["--metric", "projection"], "needs --direction"),
        (["--metric", "kl", "--refusal-tokens", "w7"], "no meaning for --metric kl"),
        (["--refusal-tokens", "97"], "outside the vocabulary"),
        (["--refusal-tokens", "w7", "--method", "atp"], "atp is not for level edge"),
        (["--metric", "kl", "--method", "eap"], "gradient zero"),
        (["--refusal-tokens", "w7", "--split", "dev"], "not train, val, test or all"),
    ],
)
def test_bad_requests_exit_2_and_leave_nothing_behind(folder, tmp_path, more, message):
    result = refusal_nn(*given(folder), "--stores", str(tmp_path), *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_uneven_pairs_exit_2_and_leave_nothing_behind(folder, tmp_path):
    argv = [*given(folder, "uneven.jsonl"), "--stores", str(tmp_path), "--refusal-tokens", "w7"]
    result = refusal_nn(*argv)
    assert result.exit_code == 2
    assert "pair 3" in result.stderr
    assert list(tmp_path.iterdir()) == []
