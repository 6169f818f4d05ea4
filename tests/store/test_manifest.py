"""Verification finds every kind of damage and says where it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from refusal_nn.errors import StoreError, VerificationError
from refusal_nn.store import open_runs, problems, run_hash, verify
from refusal_nn.store.manifest import locate
from tests.store.synthetic import analyse, batches, compute_prompts, prompt_template, recorder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    analyse(recorder(folder))
    return folder / "run.zarr"


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run.zarr"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x04
    path.write_bytes(data)


def test_an_intact_run_verifies_and_is_named_by_its_content(run):
    done = verify(run)
    files = [p for p in run.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert done.name == "run"
    assert done.n_files == len(files)
    assert done.n_bytes == sum(p.stat().st_size for p in files)
    assert done.hash == run_hash(run)
    assert verify(run.with_suffix("")) == done


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("zarr.json", "root metadata"),
        ("scores/zarr.json", "metadata of 'scores'"),
        ("direction/zarr.json", "metadata of 'direction'"),
        ("direction/c/0/0", "chunk 0/0 of variable 'direction'"),
        ("layer/c/0", "chunk 0 of variable 'layer'"),
        ("scores/refused/c/1", "chunk 1 of variable 'scores/refused'"),
        ("scores/completion/c/2", "chunk 2 of variable 'scores/completion'"),
        ("scores/activation/c/3/0/0", "chunk 3/0/0 of variable 'scores/activation'"),
        ("scores/n_tokens/c/0", "chunk 0 of variable 'scores/n_tokens'"),
        ("per_prompt/sweep/bypass_per_prompt/c/0/0", "'per_prompt/sweep/bypass_per_prompt'"),
    ],
)
def test_a_flipped_byte_or_a_missing_file_is_found_and_named(run, file, said):
    size = (run / file).stat().st_size
    for at in {0, size // 2, size - 1}:
        flip(run / file, at)
        with pytest.raises(VerificationError, match=re.escape(said) + ".* does not match its hash"):
            verify(run)
        flip(run / file, at)
    verify(run)
    (run / file).unlink()
    assert any(said in p and p.endswith("is missing") for p in problems(run)) or (
        file == "zarr.json"
    )


def test_a_run_whose_root_is_damaged_beyond_reading_is_still_listed_and_found_bad(run):
    flip(run / "zarr.json", 0)
    assert open_runs(run.parent).names == ["run"]
    with pytest.raises(VerificationError, match=r"root metadata \(zarr.json\) does not match"):
        verify(run)


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(run):
    manifest = run / "manifest.json"
    for at in range(0, manifest.stat().st_size, 97):
        flip(manifest, at)
        assert problems(run), at
        flip(manifest, at)
    assert not problems(run)


def test_every_file_is_covered(run):
    for path in [p for p in run.rglob("*") if p.is_file()]:
        flip(path, path.stat().st_size // 2)
        assert len(problems(run)) >= 1, path
        flip(path, path.stat().st_size // 2)
    assert not problems(run)


def test_a_file_that_does_not_belong_is_found(run):
    (run / "notes.txt").write_text("mine")
    assert problems(run) == ["notes.txt is not in the manifest"]


def test_a_run_without_manifest_cannot_pass(run):
    (run / "manifest.json").unlink()
    with pytest.raises(VerificationError, match=r"manifest.json is missing"):
        verify(run)
    with pytest.raises(StoreError, match="has no manifest"):
        run_hash(run)


def test_an_incomplete_run_says_how_far_it_got(tmp_path):
    rec = recorder(tmp_path)

    def compute(i: int):
        if i == 3:
            raise KeyboardInterrupt
        return compute_prompts(prompt_template(), batches()[i])

    with pytest.raises(KeyboardInterrupt):
        rec.stage("scores", prompt_template(), batches(), compute)
    with pytest.raises(VerificationError, match="incomplete: stage 'scores' has 3 of 4 batches"):
        verify(tmp_path / "run")


def test_many_problems_are_counted_and_not_all_spelled_out(run):
    for path in (run / "scores").rglob("c/*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(VerificationError, match=r"\(and \d+ more\); restore it .*\.$"):
        verify(run)


def test_what_is_not_a_run_is_said_to_be_none(tmp_path):
    with pytest.raises(StoreError, match="there is no run 'nothing'"):
        verify(tmp_path / "nothing")
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "zarr.json").write_text(json.dumps({"attributes": {}}))
    with pytest.raises(StoreError, match="not a run of refusal_nn"):
        locate(tmp_path / "other")
