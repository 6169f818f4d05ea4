"""The direction commands from end to end, on a tiny random model in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import store
from refusal_nn.cli import cli
from refusal_nn.testing import tiny_module, tiny_tokenizer
from tests.directions.conftest import made_prompts

WIDE = ["--kl-max", "1e9", "--induce-min", "-1e9"]


def refusal_nn(*argv: str) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in argv], prog_name="refusal-nn")


def done(*argv: str) -> Any:
    result = refusal_nn(*argv, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a prompts file and a place for runs."""
    base = tmp_path_factory.mktemp("direction")
    tiny_module("llama").save_pretrained(base / "tiny-llama")
    tiny_tokenizer().save_pretrained(base / "tiny-llama")
    rows = made_prompts().to_rows()
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return base


def given(folder: Path) -> list[str]:
    return ["--prompts", str(folder / "prompts.jsonl"), "--stores", str(folder / "stores")]


def extract_argv(folder: Path, *more: str) -> list[str]:
    model = ["--model", str(folder / "tiny-llama"), "--refusal-tokens", "w7,8", "--no-screen"]
    return ["direction", "extract", *model, *given(folder), *more]


@pytest.fixture(scope="module")
def chain(folder: Path) -> dict[str, str]:
    """Names of the four runs."""
    model = ["--model", str(folder / "tiny-llama")]
    stores = ["--stores", str(folder / "stores")]
    names = {"extract": Path(done(*extract_argv(folder))["run"]).stem}
    score = ["direction", "score", names["extract"], *model, *given(folder), "--no-screen", *WIDE]
    names["score"] = Path(done(*score)["run"]).stem
    select = done("direction", "select", names["score"], *model, *stores, *WIDE)
    names["select"] = Path(select["run"]).stem
    evaluate = ["direction", "evaluate", names["select"], *model, *given(folder)]
    names["evaluate"] = Path(done(*evaluate, "--max-new-tokens", "6")["run"]).stem
    return names


def test_each_step_leaves_a_verified_run_that_names_its_input(
    folder: Path, chain: dict[str, str]
) -> None:
    before: str | None = None
    for step, name in chain.items():
        path = folder / "stores" / f"{name}.zarr"
        assert name.startswith(f"direction-{step}-tiny-llama-")
        store.verify(path)
        attrs = xr.open_datatree(path, engine="zarr").attrs
        assert attrs["inputs"] == (
            [{"run": before, "hash": attrs["inputs"][0]["hash"]}] if before else []
        )
        assert str(folder) not in json.dumps(attrs), "no path of this machine"
        assert attrs["command"].startswith("refusal-nn direction ")
        before = name


def test_select_prints_the_smallest_admissible_bypass(folder: Path, chain: dict[str, str]) -> None:
    scores = xr.open_zarr(folder / "stores" / f"{chain['score']}.zarr")
    early = scores["bypass"].isel(layer=slice(0, 2))
    attrs = xr.open_datatree(folder / "stores" / f"{chain['select']}.zarr", engine="zarr").attrs
    assert attrs["bypass"] == pytest.approx(float(early.min()))
    at = early.sel(layer=attrs["layer"], position=attrs["position"])
    assert float(at) == attrs["bypass"]


def test_the_same_request_again_computes_nothing(folder: Path, chain: dict[str, str]) -> None:
    again = done(*extract_argv(folder))
    assert again["reused"] is True
    assert Path(again["run"]).stem == chain["extract"]


def test_a_name_taken_by_another_request_is_refused(folder: Path, chain: dict[str, str]) -> None:
    result = refusal_nn(*extract_argv(folder, "--name", chain["extract"], "--seed", "5"))
    assert result.exit_code == 2
    assert "exists for another request" in result.stderr
    assert "--name" in result.stderr


def test_rates_are_printed_with_intervals(folder: Path, chain: dict[str, str]) -> None:
    argv = ["direction", "evaluate", chain["select"], "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, *given(folder), "--max-new-tokens", "6")
    assert result.exit_code == 0, result.stderr
    assert "already complete" in result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["intervention", "style", "refused", "low", "high", "n", "coherent"]
    assert len(rows) == 10


def test_no_admissible_candidate_exits_1_and_leaves_no_run(
    folder: Path, chain: dict[str, str]
) -> None:
    before = sorted((folder / "stores").iterdir())
    argv = ["direction", "select", chain["score"], "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, "--stores", str(folder / "stores"), "--induce-min", "1e6")
    assert result.exit_code == 1
    assert "is admissible" in result.stderr
    assert "induce score below" in result.stderr
    assert sorted((folder / "stores").iterdir()) == before


def test_test_prompts_already_used_are_refused(folder: Path, chain: dict[str, str]) -> None:
    argv = ["direction", "evaluate", chain["select"], "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, *given(folder), "--split", "val")
    assert result.exit_code == 2
    assert "share" in result.stderr


def test_selection_prompts_already_used_are_refused(folder: Path, chain: dict[str, str]) -> None:
    argv = ["direction", "score", chain["extract"], "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, *given(folder), "--split", "train", "--no-screen", "--name", "bad")
    assert result.exit_code == 2
    assert not list((folder / "stores").glob("bad*")), "a run that can never be finished stays"


def test_another_models_run_is_refused(folder: Path, chain: dict[str, str], tmp_path: Path) -> None:
    tiny_module("llama", seed=1).save_pretrained(tmp_path / "tiny-llama")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny-llama")
    argv = ["direction", "score", chain["extract"], "--model", str(tmp_path / "tiny-llama")]
    result = refusal_nn(*argv, *given(folder))
    assert result.exit_code == 2
    assert "differs" in result.stderr
    assert "weights_hash" in result.stderr


def test_a_run_of_another_analysis_is_refused(folder: Path, chain: dict[str, str]) -> None:
    result = refusal_nn("direction", "select", chain["extract"], "--stores", str(folder / "stores"))
    assert result.exit_code == 2
    assert "a direction-score run is needed" in result.stderr


def test_resume_needs_a_run(folder: Path) -> None:
    result = refusal_nn(*extract_argv(folder, "--name", "never", "--resume"))
    assert result.exit_code == 2
    assert "no run 'never' to resume" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "no-such-model"], "embedded models are tiny-refuser"),
        (["--prompts", "no-such-prompts"], "no-such-prompts"),
        (["--positions", "1,2"], "negative"),
        (["--positions", "a"], "not a list of positions"),
        (["--positions=-99"], "position -99 is not in every prompt: 'w"),
        (["--refusal-tokens", "w7,9999"], "outside the vocabulary"),
        (["--device", "meta"], "holds no weights"),
        (["--split", "dev"], "'dev' is not one of 'train', 'val', 'test', 'all'"),
        (["--dtype", "float128"], "float128"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    folder: Path, change: list[str], message: str
) -> None:
    result = refusal_nn(*extract_argv(folder, *change, "--name", "wrong"))
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((folder / "stores").glob("wrong*"))


@pytest.mark.parametrize(
    "name",
    ["../wrong", "a/wrong", "..", ".", "", ".wrong", "wrong.zarr", "wrong.zarr.partial", "wr ong"],
)
def test_a_name_that_is_no_plain_word_is_refused(folder: Path, name: str) -> None:
    before = sorted(p for p in folder.rglob("*") if p.is_dir())
    result = refusal_nn(*extract_argv(folder, "--name", name))
    assert result.exit_code == 2, result.stderr
    assert "cannot be the name of a run; use letters" in result.stderr
    assert sorted(p for p in folder.rglob("*") if p.is_dir()) == before


def test_a_chat_template_that_is_no_text_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe\x00")
    result = refusal_nn(*extract_argv(folder, "--chat-template", str(tmp_path / "t.jinja")))
    assert result.exit_code == 2
    assert "is not UTF-8 (byte" in result.stderr


def test_completions_too_short_to_judge_are_refused_and_leave_nothing(
    folder: Path, chain: dict[str, str]
) -> None:
    argv = ["direction", "evaluate", chain["select"], "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, *given(folder), "--max-new-tokens", "5", "--name", "short")
    assert result.exit_code == 2, result.stderr
    assert "--max-new-tokens" in result.stderr
    assert not list((folder / "stores").glob("short*"))


def chunks(run: Path, variable: str) -> list[Path]:
    return [p for p in (run / variable / "c").rglob("*") if p.is_file()]


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_damaged_input_run_is_named_and_not_used(
    folder: Path, chain: dict[str, str], tmp_path: Path, damage: str
) -> None:
    stores = tmp_path / "stores"
    shutil.copytree(folder / "stores" / f"{chain['score']}.zarr", stores / "scores.zarr")
    (chunk, *_) = chunks(stores / "scores.zarr", "bypass")
    if damage == "missing":
        chunk.unlink()
    else:
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    argv = ["direction", "select", "scores", "--model", str(folder / "tiny-llama")]
    result = refusal_nn(*argv, "--stores", str(stores), *WIDE)
    assert result.exit_code == 1, result.stderr
    assert "run 'scores': chunk" in result.stderr
    assert "of variable 'bypass'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_folder_has_to_be_given_again(
    folder: Path, chain: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["direction", "score", chain["extract"], *given(folder), "--no-screen", *WIDE]
    result = refusal_nn(*argv)
    assert result.exit_code == 2
    assert "made with model folder 'tiny-llama'" in result.stderr
    assert "pass --model PATH" in result.stderr
    monkeypatch.chdir(folder)  # where the name is that of the folder
    assert refusal_nn(*argv).exit_code == 0


def test_a_control_token_in_a_prompt_is_reported_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = made_prompts().to_rows()
    rows[0]["text"] = "w10 <|end|> w11"
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = ["--prompts", str(tmp_path / "prompts.jsonl")]
    result = refusal_nn(*extract_argv(folder, *prompts, "--stores", str(tmp_path / "stores")))
    assert result.exit_code == 0, result.stderr
    assert caplog.text.count("holds the control token '<|end|>'") == 1


def test_a_missing_column_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("question,kind\nhow,x\n")
    result = refusal_nn(*extract_argv(folder, "--prompts", str(tmp_path / "bad.csv")))
    assert result.exit_code == 2
    assert "question" in result.stderr


def test_nan_weights_are_named(folder: Path, tmp_path: Path) -> None:
    module = tiny_module("llama")
    module.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    module.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    result = refusal_nn(*extract_argv(folder, "--model", str(tmp_path / "broken")))
    assert result.exit_code == 2
    assert "layers.1.mlp.down_proj" in result.stderr


def test_a_model_without_chat_template_names_the_option(folder: Path, tmp_path: Path) -> None:
    tiny_module("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer(template=None).save_pretrained(tmp_path / "base")
    argv = extract_argv(folder, "--model", str(tmp_path / "base"))
    result = refusal_nn(*argv)
    assert result.exit_code == 2
    assert "--chat-template" in result.stderr
    assert refusal_nn(*argv, "--chat-template", "raw", "--name", "raw").exit_code == 0


def test_dry_run_stores_the_same_numbers(folder: Path, chain: dict[str, str]) -> None:
    done(*extract_argv(folder, "--backend", "dry-run", "--name", "dry"))
    local = xr.open_zarr(folder / "stores" / f"{chain['extract']}.zarr").load()
    dry = xr.open_zarr(folder / "stores" / "dry.zarr").load()
    xr.testing.assert_allclose(local, dry, atol=1e-6)
