"""The attribute command from end to end, on a tiny random model in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import load_model, store
from refusal_nn.attribution import Metric
from refusal_nn.cli import cli
from refusal_nn.testing import random_pairs, tiny_model, tiny_module, tiny_tokenizer
from tests.attribution._made import told_apart


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
    for file, metric in {
        "pairs.jsonl": Metric.refusal_log_odds([7, 8]),
        "logits.jsonl": Metric.logit_difference([7], [9]),
    }.items():
        rows = told_apart(tiny_model("llama"), random_pairs(6), metric).to_rows()
        (base / file).write_text("\n".join(map(json.dumps, rows)))
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
        *(False, "eap-ig", 3, 6),
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
        *(*given(folder, "logits.jsonl"), "--level", "node", "--method", "exact"),
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
        (
            ["--refusal-tokens", "w7", "--split", "dev"],
            "'dev' is not one of 'train', 'val', 'test', 'all'",
        ),
    ],
)
def test_bad_requests_exit_2_and_leave_nothing_behind(folder, tmp_path, more, message):
    result = refusal_nn(*given(folder), "--stores", str(tmp_path), *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "atp"], "atp is not for level edge"),
        (["--level", "node", "--method", "eap"], "eap is not for level node"),
        (["--batch-size", "0"], "batch"),
    ],
)
def test_options_are_checked_before_refusal_tokens_are_looked_for(
    folder, tmp_path, monkeypatch, more, message
):
    """Completions are batches of their own, which a run keeps when it fails later."""

    def never(*args, **options):
        raise AssertionError("a pass was made")

    monkeypatch.setattr("refusal_nn.contrasts._metric.discover_refusal_tokens", never)
    result = refusal_nn(*given(folder), "--stores", str(tmp_path), *more)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_swapped_pairs_exit_2_and_leave_nothing_behind(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    rows = [{**row, "clean": row["corrupted"], "corrupted": row["clean"]} for row in rows]
    (tmp_path / "swap.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stores = tmp_path / "stores"
    argv = [*given(folder), "--pairs", str(tmp_path / "swap.jsonl"), "--stores", str(stores)]
    result = refusal_nn(*argv, "--refusal-tokens", "w7,8")
    assert result.exit_code == 2
    assert "swap the columns clean (harmful) and corrupted" in " ".join(result.stderr.split())
    assert not stores.exists() or list(stores.iterdir()) == []


def test_a_direction_of_another_model_is_refused(folder, tmp_path):
    model = load_model("tiny-refuser")
    chosen = xr.Dataset(
        {"direction": ("d_model", np.ones(model.d_model))},
        attrs={
            **model.identity(),
            "analysis": "direction-select",
            "prompts_hash": "0" * 16,
            "layer": 2,
            "position": -1,
        },
    )
    store.save(chosen, tmp_path / "chosen")
    argv = [*given(folder), "--stores", str(tmp_path), "--metric", "projection"]
    result = refusal_nn(*argv, "--direction", "chosen")
    assert result.exit_code == 2
    assert "run 'chosen' was made with model 'tiny-refuser'" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["chosen.zarr"]


def test_uneven_pairs_exit_2_and_leave_nothing_behind(folder, tmp_path):
    argv = [*given(folder, "uneven.jsonl"), "--stores", str(tmp_path), "--refusal-tokens", "w7"]
    result = refusal_nn(*argv)
    assert result.exit_code == 2
    assert "pair 3" in result.stderr
    assert list(tmp_path.iterdir()) == []
