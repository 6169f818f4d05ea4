"""What can be the name of a run, and what happens to what cannot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from refusal_nn.cli import cli
from refusal_nn.errors import StoreError
from refusal_nn.runs import open_run
from refusal_nn.store import (
    RunRecorder,
    default_name,
    describe,
    find_run,
    locate,
    open_runs,
    problems,
    remove,
    run_path,
    sample_run,
)
from tests.patience import within
from tests.store.synthetic import FINGERPRINT, provenance

NO_NAMES = [".", "..", "/", "", "./", "a/..", "good/.", "../..", "a\0b", "x" * 5000, "x/" * 3000]
NO_NAMES += ["x" * 240, "é" * 130, "\ud800", ".zarr", "..zarr"]


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """A folder of runs with one in it, and beside it a run that ``.`` in the folder could be taken for."""
    shutil.copytree(sample_run(), tmp_path / "stores" / "good.zarr")
    shutil.copytree(sample_run(), tmp_path / "stores.zarr")
    return tmp_path / "stores"


def refused(result: Result) -> None:
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert len([line for line in result.output.splitlines() if line]) == 1, result.output
    assert len(result.output) < 700


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name)[:12])
def test_what_is_no_name_is_refused_in_one_sentence_and_nothing_is_removed(
    stores: Path, name: str
) -> None:
    before = sorted(stores.parent.rglob("*"))
    for argv in (["runs", "rm", "--yes"], ["runs", "show"], ["runs", "verify"], ["report"]):
        refused(CliRunner().invoke(cli, [*argv, name, "--stores", str(stores)]))
    with pytest.raises(StoreError):
        run_path(stores, name)
    for use in (locate, describe, problems, remove, find_run):
        with pytest.raises(StoreError):
            use(name)
    with pytest.raises(StoreError):
        open_run(stores, name)
    with pytest.raises(StoreError):
        RunRecorder(
            f"{stores}/{name}", fingerprint=FINGERPRINT, provenance=provenance(), request={}
        )
    assert sorted(stores.parent.rglob("*")) == before


def test_a_run_is_named_or_given_by_its_path(stores: Path) -> None:
    for name in ("good", "good.zarr", "good/", str(stores / "good"), f"{stores}/good.zarr/"):
        assert locate(run_path(stores, name)) == stores / "good.zarr"


@pytest.mark.parametrize("kind", ["file", "loop", "pipe", "link", "missing"])
def test_a_folder_of_runs_that_is_none_is_one_sentence(tmp_path: Path, kind: str) -> None:
    stores = tmp_path / "stores"
    if kind == "file":
        stores.write_text("")
    elif kind == "pipe":
        os.mkfifo(stores)
    elif kind != "missing":
        stores.symlink_to(stores if kind == "loop" else tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with within(10), pytest.raises(StoreError, match=r"cannot read the folder|there is no folder"):
        open_runs(stores)
    with within(10), pytest.raises(StoreError, match="there is no run 'x'"):
        remove(stores / "x")
    if kind not in ("missing", "link"):
        with within(10), pytest.raises(StoreError, match=r"cannot make|in the way"):
            RunRecorder(stores / "x", fingerprint=FINGERPRINT, provenance=provenance(), request={})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "loop", "pipe", "folder", "other"])
def test_what_has_the_name_of_a_run_and_is_none_is_not_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.zarr"
    if kind == "file":
        path.write_text("precious")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "precious").write_text("precious")
        if kind == "other":
            (path / "zarr.json").write_text('{"attributes": {"name": 3}, "zarr_format": 3}')
    assert open_runs(tmp_path).names == []
    with pytest.raises(StoreError, match=r"no run 'x'|not a run"):
        remove(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def test_a_run_is_removed_without_what_its_links_lead_to(stores: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (stores / "good.zarr" / "more").symlink_to(outside)
    (stores / "good.zarr" / "one").symlink_to(outside / "precious")
    remove(stores / "good")
    assert list(stores.iterdir()) == []
    assert (outside / "precious").read_text() == "precious"


def test_the_default_name_of_a_model_with_a_long_name_can_be_one(tmp_path: Path) -> None:
    name = default_name("direction", "evaluate", "org/" + "m" * 5000, "0123456789abcdef")
    assert name.endswith("-01234567")
    run_path(tmp_path, name)
    other = default_name("direction", "evaluate", "org/" + "m" * 4999 + "n", "1123456789abcdef")
    assert other != name
