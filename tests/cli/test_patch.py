"""The patch commands from end to end, on the planted model and on a tiny random one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import store
from refusal_nn.cli import cli
from refusal_nn.prompts import Pairs
from refusal_nn.testing import tiny_module, tiny_tokenizer
from tests.patching.conftest import made_pairs, planted


def refusal_nn(*argv: str) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in argv], prog_name="refusal-nn")


def done(*argv: str) -> Any:
    result = refusal_nn(*argv, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def written(pairs: Pairs, path: Path) -> Path:
    path.write_text("\n".join(map(json.dumps, pairs.to_rows())))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("patch")
    written(planted(), base / "planted.jsonl")
    tiny_module("llama").save_pretrained(base / "tiny-llama")
    tiny_tokenizer().save_pretrained(base / "tiny-llama")
    written(made_pairs(4, splits=("train", "val", "test")), base / "made.jsonl")
    return base


def gate(folder: Path, *more: str) -> list[str]:
    pairs = ["--pairs", str(folder / "planted.jsonl"), "--refusal-tokens", "I"]
    return ["--model", "planted-gate", *pairs, "--stores", str(folder / "stores"), *more]


@pytest.fixture(scope="module")
def positions(folder: Path) -> dict[str, Any]:
    return done("patch", "positions", *gate(folder, "--max-new-tokens", "8"))


@pytest.fixture(scope="module")
def heads(folder: Path) -> dict[str, Any]:
    return done("patch", "heads", *gate(folder, "--controls", "20", "--max-new-tokens", "8"))


def test_both_leave_verified_runs_that_plain_xarray_opens(folder, positions, heads):
    for verb, answer in (("positions", positions), ("heads", heads)):
        path = Path(answer["run"])
        assert path.name.startswith(f"patch-{verb}-planted-gate-")
        store.verify(path)
        tree = xr.open_datatree(path, engine="zarr")
        assert tree.attrs["analysis"] == f"patch-{verb}"
        assert tree["recovery_mean"].attrs["units"] == "0 none, 1 all"
        assert str(folder) not in json.dumps(tree.attrs), "no path of this machine"


def test_positions_prints_the_strongest_patches_first(positions):
    found = [row["recovery"] for row in positions["strongest"]]
    assert len(found) == 10
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(1.0, abs=0.02)
    assert set(positions["strongest"][0]) >= {"site", "layer", "position", "low", "high"}


def test_the_strongest_patch_of_each_site_is_completed(positions):
    tree = xr.open_datatree(positions["run"], engine="zarr")
    said = tree["completions"]["completion"]
    assert said.sizes["intervention"] == 2 + 3
    patched = said.isel(intervention=slice(2, None)).values
    assert (patched == "I cannot help with that.").all()
    assert [row["intervention"] for row in positions["refusal_rate"]][:2] == ["harmful", "harmless"]


def test_heads_prints_the_planted_circuit(heads):
    assert [(row["head"], row["role"]) for row in heads["heads"]] == [
        ("a1.h1", "gate"),
        ("a2.h0", "amplifier"),
        ("a2.h2", "amplifier"),
    ]
    for row in heads["joint"]:
        assert row["recovery"] == pytest.approx(1.0, abs=0.02)
        assert row["p"] == pytest.approx(1 / 21)
    tree = xr.open_datatree(heads["run"], engine="zarr")
    into = tree["completions_sufficiency"]["completion"].sel(intervention="refusal heads")
    assert set(into.values) == {"I cannot help with that."}
    back = tree["completions_necessity"]["completion"].sel(intervention="refusal heads")
    assert set(back.values) == {"Sure, here is a plan."}
    assert set(tree.children) >= {"train", "test", "steps", "cascade"}


def test_tables_are_printed_without_json(folder, positions, heads):
    table = refusal_nn("patch", "positions", *gate(folder, "--max-new-tokens", "8", "--top", "3"))
    assert table.exit_code == 0, table.stderr
    assert "already complete" in table.stderr
    assert table.stdout.splitlines()[0].split()[:4] == ["site", "layer", "position", "recovery"]
    assert len(table.stdout.splitlines()) == 4
    again = refusal_nn("patch", "heads", *gate(folder, "--controls", "20", "--max-new-tokens", "8"))
    assert "a1.h1" in again.stdout
    assert "gate" in again.stdout


def test_the_same_request_again_computes_nothing(folder, positions):
    again = done("patch", "positions", *gate(folder, "--max-new-tokens", "8"))
    assert again["reused"] is True
    assert again["run"] == positions["run"]


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("verb", ["positions", "heads"])
def test_a_killed_run_resumes_to_the_same_store(folder, monkeypatch, verb):
    from refusal_nn.tracing import Passes

    more = ["--layers", "1,2", "--max-new-tokens", "4"]
    more += ["--controls", "4"] if verb == "heads" else ["--batch-size", "24"]
    whole = done("patch", verb, *gate(folder, *more, "--name", f"whole-{verb}"))
    stream = Passes.stream
    calls = 0

    def dying(self, indices, ledger):
        nonlocal calls
        for result in stream(self, indices, ledger):
            calls += 1
            if calls == 6:
                raise Killed
            yield result

    argv = ["patch", verb, *gate(folder, *more, "--name", f"killed-{verb}")]
    monkeypatch.setattr(Passes, "stream", dying)
    with pytest.raises(Killed):
        CliRunner().invoke(cli, argv, catch_exceptions=False)
    monkeypatch.setattr(Passes, "stream", stream)
    killed = done(*argv, "--resume")
    trees = [xr.open_datatree(answer["run"], engine="zarr").load() for answer in (whole, killed)]
    assert set(trees[0].children) == set(trees[1].children)
    for path in ("/", *trees[0].children):
        xr.testing.assert_equal(*(tree[path].to_dataset() for tree in trees))


def tiny(folder: Path, verb: str, *more: str) -> list[str]:
    model = ["--model", str(folder / "tiny-llama"), "--pairs", str(folder / "made.jsonl")]
    return ["patch", verb, *model, "--stores", str(folder / "stores"), "--name", "wrong", *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--refusal-tokens", "w7"], "treats no pair of 'made' as labelled"),
        (["--refusal-tokens", "w7", "--no-screen"], "includes 0"),
        (["--refusal-tokens", "not,there"], "'not' is not in the vocabulary of 'tiny-llama'"),
        (["--refusal-tokens", "999"], "outside the vocabulary"),
        (["--metric", "logit-difference", "--refusal-tokens", "w7"], "needs --against"),
        (["--against", "w8"], "has no meaning for --metric refusal-log-odds"),
        (["--metric", "projection"], "needs --direction"),
        (["--layers", "1,x"], "not a list of whole numbers"),
        (["--refusal-tokens", "w7", "--no-screen", "--layers", "9"], "cannot be patched"),
        (["--pairs", "no-pairs"], "no set of pairs or file 'no-pairs'"),
    ],
)
@pytest.mark.parametrize("verb", ["positions", "heads"])
def test_bad_input_is_one_sentence_and_exit_2(folder, verb, more, message):
    result = refusal_nn(*tiny(folder, verb, *more))
    assert result.exit_code == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (folder / "stores" / "wrong.zarr").exists()


@pytest.mark.parametrize(
    ("verb", "more", "message"),
    [
        *((v, ["--positions=-99"], "cannot be patched") for v in ("positions", "heads")),
        *((v, ["--layers", "9"], "cannot be patched") for v in ("positions", "heads")),
        *((v, ["--batch-size", "0"], "batch") for v in ("positions", "heads")),
    ],
)
def test_a_request_is_checked_before_refusal_tokens_are_looked_for(
    folder, tmp_path, monkeypatch, verb, more, message
):
    """Completions are batches of their own, which a run keeps when it fails later."""

    def never(*args, **options):
        raise AssertionError("a pass was made")

    monkeypatch.setattr("refusal_nn.contrasts._metric.discover_refusal_tokens", never)
    result = refusal_nn(*tiny(folder, verb, "--stores", str(tmp_path), *more))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_misaligned_pairs_leave_nothing_behind(folder, tmp_path):
    rows = made_pairs(4).to_rows()
    rows[2]["clean"] += " w9 w10"
    (tmp_path / "uneven.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = tiny(folder, "positions", "--refusal-tokens", "w7", "--name", "uneven")
    result = refusal_nn(*argv, "--pairs", str(tmp_path / "uneven.jsonl"))
    assert result.exit_code == 2
    assert "pair 3 of 'uneven' is not aligned" in result.stderr
    assert not list((folder / "stores").glob("uneven*"))


def test_a_missing_split_is_named(folder, tmp_path):
    written(made_pairs(3, splits=("train", "test")), tmp_path / "two.jsonl")
    result = refusal_nn(*tiny(folder, "heads"), "--pairs", str(tmp_path / "two.jsonl"))
    assert result.exit_code == 2
    assert "no pairs in split 'val'" in result.stderr


def test_a_projection_on_a_stored_direction_is_a_metric(folder, tmp_path):
    """A direction run of the same model is read, and named as the input of the run."""
    import numpy as np

    from refusal_nn import load_model

    model = load_model("planted-gate")
    direction = np.zeros(model.d_model)
    direction[3] = 1.0  # where the planted amplifiers write
    chosen = xr.Dataset(
        {"direction": ("d_model", direction)},
        attrs={
            **model.identity(),
            "analysis": "direction-select",
            "prompts_hash": "0" * 16,
            "layer": 3,
            "position": -1,
        },
    )
    store.save(chosen, folder / "stores" / "chosen")
    argv = gate(folder, "--metric", "projection", "--direction", "chosen", "--max-new-tokens", "0")
    argv = [a for a in argv if a not in ("--refusal-tokens", "I")]
    answer = done("patch", "positions", *argv)
    tree = xr.open_datatree(answer["run"], engine="zarr")
    assert tree.attrs["inputs"][0]["run"] == "chosen"
    assert tree["layer"].values.tolist() == [0, 1, 2]
    assert "completions" not in tree.children
    at = tree["recovery_mean"].sel(site="attn_out", layer=2, position=-1)
    assert float(at) == pytest.approx(1.0, abs=0.02)
