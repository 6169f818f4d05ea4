"""The circuit commands from end to end, on the shipped model whose circuit is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import store
from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import Circuit
from refusal_nn.cli import cli
from refusal_nn.testing import tiny_module, tiny_tokenizer
from refusal_nn.testing.gate import PLANTED_EDGES
from refusal_nn.testing.words import planted_pairs


def refusal_nn(*argv: str) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in argv], prog_name="refusal-nn")


def done(*argv: str) -> Any:
    result = refusal_nn(*argv, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of the planted model, split by object, and an attribution run of the training pairs."""
    base = tmp_path_factory.mktemp("circuit")
    rows = [
        {
            "clean": clean,
            "corrupted": corrupted,
            "category": "objects",
            "split": ("train", "val", "test")[i % 10 % 3],
            "family": f"object-{i % 10}",
        }
        for i, (clean, corrupted) in enumerate(planted_pairs())
        if i % 2
    ]
    (base / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ["--model", "planted-gate", "--refusal-tokens", "I", "--name", "scores"]
    done("attribute", *argv, *given(base))
    return base


def given(folder: Path) -> list[str]:
    return ["--pairs", str(folder / "pairs.jsonl"), *kept(folder)]


def kept(folder: Path) -> list[str]:
    return ["--stores", str(folder / "stores")]


@pytest.fixture(scope="module")
def circuit(folder: Path) -> dict[str, Any]:
    argv = ["circuit", "discover", "scores", "--faithfulness", "0.95", "--name", "found"]
    return done(*argv, *given(folder))


@pytest.fixture(scope="module")
def evaluated(folder: Path, circuit: dict[str, Any]) -> dict[str, Any]:
    return done("circuit", "evaluate", "found", *given(folder), "--draws", "19")


def opened(folder: Path, name: str) -> xr.DataTree:
    store.verify(folder / "stores" / f"{name}.zarr")
    return xr.open_datatree(folder / "stores" / f"{name}.zarr", engine="zarr")


def test_discover_finds_the_planted_circuit_and_stores_how(
    folder: Path, circuit: dict[str, Any]
) -> None:
    tree = opened(folder, "found")
    found = Circuit.from_dataset(tree.to_dataset())
    assert set(found.edges()) == set(PLANTED_EDGES)
    n = len(PLANTED_EDGES)
    assert circuit["edges"] == {"requested": n, "kept": n, "total": found.n_total}
    assert circuit["faithfulness"] == pytest.approx(1, abs=0.01)
    assert circuit["jaccard"]["value"] == pytest.approx(1)
    assert set(tree.children) == {"discovery", "sizes", "stability"}
    assert set(tree["discovery"]["split"].values.tolist()) == {"train"}
    assert set(tree["sizes"]["split"].values.tolist()) == {"val"}
    assert tree.attrs["inputs"][0]["run"] == "scores"
    assert str(folder) not in json.dumps(tree.attrs)


def test_evaluate_prints_what_scripts_read(
    folder: Path, circuit: dict[str, Any], evaluated: dict[str, Any]
) -> None:
    assert set(evaluated["faithfulness"]) == {"value", "low", "high"}
    assert evaluated["faithfulness"]["value"] == pytest.approx(1, abs=0.01)
    assert evaluated["completeness"]["value"] == pytest.approx(0, abs=0.01)
    assert evaluated["edges"] == {k: circuit["edges"][k] for k in ("kept", "total")}
    assert evaluated["null"] == {"p": 0.05, "n": 19}
    assert 0.9 < evaluated["cpr"] < 1.001
    assert 0 < evaluated["cmd"] < 0.1
    tree = opened(folder, Path(evaluated["run"]).stem)
    assert float(tree["faithfulness"]) == evaluated["faithfulness"]["value"]
    assert set(tree.children) == {"edges", "grid", "null"}
    # per-prompt values are kept: the ratio of their means is what was printed
    table = tree["circuit_metric"]
    model, ablated, alone = (
        table.sel(circuit=name).values for name in ("model", "ablated", "circuit")
    )
    ratio = (alone - ablated).mean() / (model - ablated).mean()
    assert ratio == pytest.approx(evaluated["faithfulness"]["value"])
    assert set(tree["split"].values.tolist()) == {"test"}


def test_the_same_request_again_is_reported_and_not_run(
    folder: Path, evaluated: dict[str, Any]
) -> None:
    again = done("circuit", "evaluate", "found", *given(folder), "--draws", "19")
    assert again["reused"]
    assert {**again, "reused": False} == {**evaluated, "reused": False}


def test_other_ablations_and_nulls_are_other_runs(folder: Path, circuit: dict[str, Any]) -> None:
    argv = ["circuit", "evaluate", "found", *given(folder), "--no-grid", "--null", "none"]
    found = done(*argv, "--ablation", "mean")
    assert found["faithfulness"]["value"] == pytest.approx(1, abs=0.05)
    assert found["null"] is None
    assert found["cpr"] is None


def test_circuits_are_compared_with_and_without_pairs(
    folder: Path, circuit: dict[str, Any]
) -> None:
    done("circuit", "discover", "scores", "--edges", "40", "--name", "larger", *kept(folder))
    found = done("circuit", "compare", "found", "larger", *given(folder))
    (row,) = found["overlap"]
    sizes = [
        Circuit.from_dataset(opened(folder, name).to_dataset()).n_kept
        for name in ("found", "larger")
    ]
    assert row["iou"] == pytest.approx(min(sizes) / max(sizes))
    assert row["rank_correlation"] == pytest.approx(1)
    assert [c["circuit"] for c in found["cross"]] == ["found", "larger"]
    assert np.allclose([c["faithfulness"] for c in found["cross"]], 1, atol=0.01)
    bare = done("circuit", "compare", "found", "larger", *kept(folder))
    assert bare["cross"] == []
    assert bare["run"] != found["run"]


def test_a_run_that_was_stopped_continues_to_the_same_store(
    folder: Path, circuit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from refusal_nn.circuits import _evaluate

    argv = ["circuit", "evaluate", "found", *given(folder), "--null", "random", "--draws", "9"]
    whole = done(*argv, "--name", "whole")

    def stop(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_evaluate, "_null", stop)
        assert refusal_nn(*argv, "--name", "stopped").exit_code == 130
    assert (folder / "stores" / "stopped.zarr.partial").is_dir()
    resumed = done(*argv, "--name", "stopped", "--resume")
    assert resumed["faithfulness"] == whole["faithfulness"]
    a, b = (opened(folder, name) for name in ("whole", "stopped"))
    for group in ("/", "grid", "null", "edges"):
        xr.testing.assert_equal(a[group].to_dataset(), b[group].to_dataset())


def test_pairs_the_circuit_has_seen_are_refused_with_what_to_give_instead(
    folder: Path, circuit: dict[str, Any]
) -> None:
    for split in ("train", "val"):
        result = refusal_nn("circuit", "evaluate", "found", *given(folder), "--split", split)
        assert result.exit_code == 2
        assert "give pairs of another split or other families" in result.stderr
        assert "drop the split column" not in result.stderr


def test_no_model_is_loaded_where_no_pass_is_made(
    folder: Path, circuit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["circuit", "discover", "scores", "--edges", "30", *kept(folder)]
    with_model = done(*argv, "--model", "planted-gate")

    def load(*_args: Any, **_options: Any) -> None:
        raise AssertionError("a model was loaded")

    with monkeypatch.context() as patched:
        patched.setattr("refusal_nn.models.load_model", load)
        again = done(*argv)
        assert again == {**with_model, "reused": True}
        few = done(*argv, "--name", "few", "--resamples", "0")
        other = done("circuit", "compare", "found", "few", *kept(folder))
    assert (
        opened(folder, "few").attrs["weights_hash"] == opened(folder, "found").attrs["weights_hash"]
    )
    assert few["edges"]["kept"] == with_model["edges"]["kept"]
    assert other["cross"] == []


def test_a_threshold_means_the_rule_threshold(folder: Path, circuit: dict[str, Any]) -> None:
    argv = ["circuit", "discover", "scores", "--threshold", "0.2", *kept(folder)]
    implied, said = done(*argv), done(*argv, "--rule", "threshold")
    assert said == {**implied, "reused": True}
    assert opened(folder, Path(implied["run"]).stem).attrs["rule"] == "threshold"


def test_shares_are_printed_to_three_decimals(folder: Path, evaluated: dict[str, Any]) -> None:
    shown = refusal_nn("circuit", "evaluate", "found", *given(folder), "--draws", "19").stdout
    # the circuit is the model: there is no interval about a share of 1 for every pair
    cells = ["-" if v is None else f"{v:.3f}" for v in evaluated["faithfulness"].values()]
    ends = " +".join(map(re.escape, cells))
    assert re.search(rf"faithfulness +{ends}\n", shown)


def test_the_lower_end_of_the_interval_reaches_the_target(
    folder: Path, circuit: dict[str, Any]
) -> None:
    assert 0.95 <= circuit["faithfulness_low"] <= circuit["faithfulness"]
    argv = ["circuit", "discover", "scores", "--faithfulness", "0.95", *given(folder)]
    estimate = done(*argv, "--confidence", "0")
    assert estimate["run"] != circuit["run"]
    assert estimate["edges"]["kept"] <= circuit["edges"]["kept"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["circuit", "discover", "scores"], "exactly one of edges and fraction"),
        (["circuit", "discover", "scores", "--edges", "100000"], "the graph has 1 to"),
        (["circuit", "discover", "scores", "--faithfulness", "0.9"], "go together"),
        (["circuit", "discover", "found", "--edges", "5"], "attribute-edges run is needed"),
        (["circuit", "discover", "scores", "--edges", "1"], "leaves none; ask for 5 edges or more"),
        (["circuit", "discover", "scores", "--threshold", "1000"], "leaves none; a threshold of"),
        (["circuit", "discover", "scores", "--threshold", "nan"], "give a finite number"),
        (["circuit", "discover", "scores", "--rule", "top", "--threshold", "1"], "goes with rule"),
        *[
            (["circuit", "discover", "scores", "--edges", "9", *option], "without --faithfulness")
            for option in (
                ("--ablation", "mean"),
                ("--split", "val"),
                ("--batch-size", "8"),
                ("--confidence", "0.9"),
            )
        ],
        (["circuit", "compare", "found", "larger", "--ablation", "mean"], "without --pairs"),
        (
            ["circuit", "evaluate", "found", "PAIRS", "--null", "random", "--null", "random"],
            "twice",
        ),
        (["circuit", "evaluate", "scores", "PAIRS"], "circuit-discover run is needed"),
        (["circuit", "evaluate", "found", "PAIRS", "--split", "train"], "share"),
        (["circuit", "evaluate", "found", "PAIRS", "--split", "val"], "share"),
        (["circuit", "compare", "found"], "at least two circuits"),
        (["circuit", "compare", "found", "found"], "named twice"),
        (["circuit", "compare", "found", "larger", "PAIRS", "PAIRS"], "one name"),
    ],
)
def test_a_wrong_request_exits_2_says_why_and_leaves_nothing(
    folder: Path, circuit: dict[str, Any], argv: list[str], message: str
) -> None:
    before = sorted(p.name for p in (folder / "stores").iterdir())
    pairs = ["--pairs", str(folder / "pairs.jsonl")]
    typed = [part for word in argv for part in (pairs if word == "PAIRS" else [word])]
    result = refusal_nn(*typed, *kept(folder))
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert sorted(p.name for p in (folder / "stores").iterdir()) == before


def test_a_circuit_of_another_model_is_refused(folder: Path, circuit: dict[str, Any]) -> None:
    tiny_module("llama").save_pretrained(folder / "tiny-llama")
    tiny_tokenizer().save_pretrained(folder / "tiny-llama")
    argv = ["circuit", "evaluate", "found", "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, *given(folder))
    assert result.exit_code == 2
    assert "was made with model 'planted-gate'" in result.stderr
    assert EdgeGraph(n_layers=4, n_heads=4, n_kv_heads=4).n_edges == circuit["edges"]["total"]
