"""What is looked at before a run is read or written, and what is said when reading fails after."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from refusal_nn.cli import cli
from refusal_nn.errors import StoreError
from refusal_nn.store import (
    MemoryRecorder,
    RunRecorder,
    describe,
    find_run,
    forget_jobs,
    manifest,
    open_runs,
    problems,
    remove,
    sample_run,
    save,
)
from refusal_nn.store import _inspect as inspecting
from refusal_nn.store._attrs import plain
from tests.patience import limit, within
from tests.store import hostile, looping
from tests.store.synthetic import FINGERPRINT, provenance


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete run that may be changed."""
    return Path(shutil.copytree(sample_run(), tmp_path / "run.zarr"))


def test_our_own_runs_pass(run: Path, tmp_path: Path) -> None:
    inspecting.inspect(run)
    with hostile.begin(tmp_path / "other") as recorder:
        inspecting.inspect(recorder.partial)
        done = hostile.stage(recorder)
        recorder.commit({"/": done}, keep=["scores"])
    inspecting.inspect(recorder.path)
    assert find_run(recorder.path).load().equals(recorder.open())


def test_large_arrays_of_every_codec_pass(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(3, 1 << 19)).astype(np.float32)
    short = (wide.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for name, values in (("raw", wide), ("short", short), ("half", wide.astype(np.float16))):
        data = xr.Dataset({"direction": (("layer", "d_model"), values)}, {"layer": range(3)})
        path = save(data, tmp_path / name, provenance())
        assert np.array_equal(find_run(path).load()["direction"].values, values)
    empty = xr.Dataset({"bypass": ("layer", np.zeros(0))}, {"layer": np.zeros(0, int)})
    assert find_run(save(empty, tmp_path / "empty", provenance())).load()["bypass"].size == 0


def test_a_chunk_damaged_after_opening_is_one_sentence_where_it_is_read(run: Path) -> None:
    tree = find_run(run).open()
    path = next((run / "nll" / "c").rglob("0"))
    path = path if path.is_file() else next(p for p in path.rglob("*") if p.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(StoreError, match=r"run 'run' cannot be read .*runs verify run"):
        _ = tree["nll"].values
    with pytest.raises(StoreError, match="run 'run' cannot be read"):
        tree["nll"].mean().load()


def test_attrs_do_not_turn_numbers_into_others(run: Path) -> None:
    attrs = {"scale_factor": 9.0, "add_offset": 1.0, "units": "days since 2000-01-01", "dtype": "x"}
    before = find_run(run).load()["n_tokens"].values
    hostile.edit(run, hostile.attribute(**attrs), "n_tokens")
    hostile.reseal(run)
    assert find_run(run).load()["n_tokens"].identical(find_run(run).dataset().load()["n_tokens"])
    assert np.array_equal(find_run(run).load()["n_tokens"].values, before)


def test_a_run_larger_than_memory_is_not_loaded(run: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    with pytest.raises(StoreError, match=r"would take .* GiB, and this machine has"):
        find_run(run).load()


def test_too_many_files_are_not_walked_through(run: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inspecting, "_MOST_FILES", 50)
    with pytest.raises(StoreError, match="it holds more than 50 files"):
        describe(run)


def test_a_chunk_is_no_larger_than_what_it_holds(run: Path) -> None:
    """A sparse one costs its maker nothing, and its beginning and hash can be right."""
    shutil.copytree(run, run.with_name("good.zarr"))
    texts = [v for v in hostile.variables(run) if v not in hostile.numbers(run)]
    for variable in (texts[0], hostile.numbers(run)[0]):
        path = next(p for p in (run / variable / "c").rglob("*") if p.is_file())
        whole = path.read_bytes()
        os.truncate(path, 20 << 20)
        manifest.write(run)
        with pytest.raises(StoreError, match=r"is damaged: its file is larger than the \d+ bytes"):
            inspecting.inspect(run)
        assert "larger than" in problems(run)[0]
        hostile.replace(path, whole)
        # too large to be hashed, too
        os.truncate(path, 5 << 40)
        with within(10):
            (found,) = problems(run)
        assert found.endswith("is larger than any file of a run")
        hostile.replace(path, whole)
    manifest.write(run)
    assert problems(run) == []


def test_values_that_no_codec_makes_smaller_pass(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = ["".join(map(chr, rng.integers(32, 1 << 14, size=1000))) for _ in range(1000)]
    noise = rng.integers(0, 1 << 32, size=1000, dtype=np.uint64).view(np.float64)
    data = xr.Dataset({"loop_loss": ("step", noise)}, {"step": np.arange(1000)})
    data = data.assign_coords(source=("step", text))
    assert problems(save(data, tmp_path / "run", provenance())) == []


@pytest.mark.parametrize("hungry", ["zarr.json", "manifest.json"])
def test_a_run_that_takes_all_memory_does_not_end_the_check_of_others(
    run: Path, monkeypatch: Any, hungry: str
) -> None:
    shutil.copytree(run, run.with_name("good.zarr"))
    real = inspecting.own_bytes

    def scarce(path: Path, **options: Any) -> bytes:
        if path.is_relative_to(run) and path.name == hungry:
            raise MemoryError
        return real(path, **options)

    for module in (inspecting, manifest):
        monkeypatch.setattr(module, "own_bytes", scarce)
    result = CliRunner().invoke(cli, ["runs", "verify", "--stores", str(run.parent)])
    assert result.exit_code == 1
    good, bad = result.output.splitlines()
    assert good == "good: ok"
    assert bad.startswith("run: ")
    assert "more memory than there is" in bad


def test_a_partial_run_that_cannot_be_used_is_not_said_to_be_resumed(tmp_path: Path) -> None:
    partial = hostile.begin(tmp_path / "run").partial
    assert problems(partial) == [
        "run is incomplete: stage 'scores' has 1 of 3 batches; resume it or remove it"
    ]
    (partial / "more").symlink_to(tmp_path)
    assert problems(partial) == [
        "run 'run' cannot be used: 'more' is a link, and a run holds none; get it anew from where it "
        "came from, or remove it with `refusal-nn runs rm run`"
    ]


def test_metadata_larger_than_any_are_not_read(run: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(inspecting, "NODE_BYTES", 1000)
    monkeypatch.setattr(inspecting.own_bytes, "__kwdefaults__", {"limit": 1000, "what": "file"})
    (found,) = open_runs(run.parent)
    assert (found.state, "larger than" in found.reason) == ("damaged", True)


def test_nodes_that_the_root_does_not_name_are_not_parsed(run: Path) -> None:
    (run / "more").mkdir()
    (run / "more" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"zarr.json of the run and of 'more' do not agree"):
        inspecting.inspect(run)


@pytest.mark.parametrize("linked", [True, False])
def test_metadata_in_many_files_are_bounded_in_all(run: Path, tmp_path: Path, linked: bool) -> None:
    """One large node under twenty names, or twenty sparse ones; complete or partial."""
    partial = hostile.begin(tmp_path / "other").partial
    for folder in (run, partial):
        first = folder / "n0" / "zarr.json"
        for i in range(20):
            path = folder / f"n{i}" / "zarr.json"
            path.parent.mkdir()
            if linked and i:
                path.hardlink_to(first)
            else:
                path.touch()
                os.truncate(path, 28 << 20)
        with within(10), pytest.raises(StoreError, match=r"its metadata have 58\d,\d+,\d+ bytes"):
            describe(folder)


def test_looking_through_a_run_costs_little(run: Path) -> None:
    inspecting.inspect(run)
    start = time.process_time()
    for _ in range(5):
        inspecting.inspect(run)
    # 5 ms measured; opening it takes 40
    assert (time.process_time() - start) / 5 < limit(0.02)


def test_strange_attrs_are_listed_and_selected(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(60):
        deep = {"a": deep}
    strange = {"a\x1b]0;x\x07": 1, "big": "y" * 10_000_000, "deep": deep, "list": [[{}], []]}
    strange |= {"state": "complete", "path": "/etc", "name": "other", "": {"": {}}}
    for name, attrs in (("good", {}), ("strange", strange)):
        folder = tmp_path / f"{name}.zarr"
        shutil.copytree(sample_run(), folder)
        hostile.edit(folder, lambda node, attrs=attrs: node["attributes"].update(attrs))
        hostile.reseal(folder)
    runs = open_runs(tmp_path)
    assert [(r.name, r.state) for r in runs] == [("good", "complete"), ("strange", "complete")]
    assert len(repr(runs)) < 2000
    assert runs.select(list={"x"}).names == []
    assert runs.select(big=lambda text: len(text) > 5).names == ["strange"]
    assert runs.select(model={"tiny-refuser"}, state=["complete"]).names == ["good", "strange"]
    assert runs.to_frame()["path"].tolist() == [str(r.path) for r in runs]
    assert describe(tmp_path / "strange")["attrs"]["deep"] == deep


def test_a_lock_with_another_name_is_not_written(tmp_path: Path) -> None:
    """A hard link from an archive: what is emptied here would be emptied there."""
    partial = hostile.begin(tmp_path / "run").partial
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (partial / "lock").unlink()
    (partial / "lock").hardlink_to(precious)
    with pytest.raises(StoreError, match="its 'lock' is a link or no plain file"):
        hostile.begin(tmp_path / "run")
    with pytest.raises(StoreError, match="lock"):
        forget_jobs(partial)
    remove(tmp_path / "run")
    assert precious.read_text() == "precious"
    assert not partial.exists()


@pytest.mark.parametrize("where", [".", "scores", "scores/bypass/c", ".commit"])
def test_nothing_is_written_through_a_link_in_a_partial_run(tmp_path: Path, where: str) -> None:
    partial = hostile.begin(tmp_path / "run").partial
    outside = tmp_path / "outside"
    if (partial / where).exists():
        (partial / where).rename(outside)
    else:
        outside.mkdir()
        (outside / "precious").write_text("precious")
    (partial / where).symlink_to(outside)
    before = {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    assert before
    with pytest.raises(StoreError, match=r"run 'run' cannot be used: .* a link"):
        hostile.begin(tmp_path / "run")
    assert {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()} == before


def test_a_finished_run_beside_a_link_removes_nothing_through_it(tmp_path: Path) -> None:
    with hostile.begin(tmp_path / "run") as recorder:
        recorder.commit({"/": hostile.stage(recorder)})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "lock").write_text("precious")
    recorder.partial.symlink_to(outside)
    again = RunRecorder(
        tmp_path / "run", fingerprint=FINGERPRINT, provenance=provenance(), request={}
    )
    assert again.already_complete
    assert (outside / "lock").read_text() == "precious"


@pytest.mark.parametrize(
    "change",
    [
        lambda loop: (loop / "at_4").rename(loop / "at_400"),
        lambda loop: (loop / "at_4").rename(loop / f"at_{'9' * 100}"),
        lambda loop: (loop / "at_4" / "loop_vector" / "zarr.json").unlink(),
        lambda loop: hostile.edit(loop, hostile.setting(shape=[3]), "loop_loss"),
    ],
)
def test_a_loop_that_is_not_as_it_was_begun_does_not_go_on(
    tmp_path: Path, change: Callable[[Path], Any]
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if (name, done) == ("grow", 4):
            raise InterruptedError

    with looping.recorder(tmp_path, progress=stop) as recorder, pytest.raises(InterruptedError):
        looping.analyse(recorder)
    folder = recorder.partial / "grow.loop"
    assert (folder / "at_4").is_dir()
    change(folder)
    with within(60), pytest.raises(StoreError, match=r"loop 'grow'|run 'run'"):
        looping.analyse(looping.recorder(tmp_path))


NO_ATTRS: dict[str, Any] = {
    "surrogate": "\ud800",
    "key": {"\udfff": 1},
    "number": 1 << 20_000,
    "object": object(),
}
NO_ATTRS["nested"] = json.loads("[" * 100 + "]" * 100)


@pytest.mark.parametrize("value", NO_ATTRS.values(), ids=NO_ATTRS)
def test_attrs_that_cannot_be_stored_leave_nothing_behind(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StoreError):
        plain(value)
    for options in (
        {"provenance": provenance(note=value), "request": {}},
        {"provenance": provenance(), "request": {"note": value}},
    ):
        with pytest.raises(StoreError):
            RunRecorder(tmp_path / "run", fingerprint=FINGERPRINT, **options)
    template = hostile.TEMPLATE.assign_attrs(note=value)
    recorder = RunRecorder(
        tmp_path / "run", fingerprint=FINGERPRINT, provenance=provenance(), request={}
    )
    with recorder, pytest.raises(StoreError):
        recorder.stage("scores", template, hostile.BATCHES, lambda i: template.isel(layer=[i]))
    assert list(tmp_path.iterdir()) == []


def test_provenance_of_another_kind_is_refused_where_it_is_written(tmp_path: Path) -> None:
    for changes in ({"model": ["a"]}, {"analysis": 3}, {"versions": {"torch": 2}}, {"device": ""}):
        options: dict[str, Any] = {"fingerprint": FINGERPRINT, "request": {}}
        if changes == {"device": ""}:
            changes = {"options": "text"}
        with pytest.raises(StoreError, match="provenance"):
            RunRecorder(tmp_path / "run", provenance=provenance(**changes), **options)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_are_not_unicode_are_refused_before_they_are_stored(tmp_path: Path) -> None:
    texts = np.array(["good", "\ud83d"])
    data = xr.Dataset({"loop_loss": ("step", [1.0, 2.0])}, {"step": [0, 1]})
    data = data.assign_coords(source=("step", texts))
    recorder = RunRecorder(
        tmp_path / "run", fingerprint=FINGERPRINT, provenance=provenance(), request={}
    )
    for where in (recorder, MemoryRecorder()):
        with pytest.raises(StoreError, match="'source' holds text that is not Unicode"):
            where.stage("x", data, [{}], lambda i: data)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_is_refused_after_batches_keeps_them(tmp_path: Path) -> None:
    with hostile.begin(tmp_path / "run") as recorder, pytest.raises(StoreError):
        recorder.stage("more", hostile.TEMPLATE.rename(bypass="undeclared"), [{}], lambda i: None)
    assert recorder.partial.is_dir()


def test_request_files_too_large_to_be_read_again_are_not_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    from refusal_nn.store import _partial

    monkeypatch.setattr(_partial, "NODE_BYTES", 100)
    with pytest.raises(StoreError, match=r"cannot be begun: its zarr\.json would have"):
        hostile.begin(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_request_is_kept_as_long_as_it_can_be_read_again(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Its size is that of its bytes, and nothing is added to them."""
    from refusal_nn.store import _partial

    monkeypatch.setattr(_partial, "MAX_BYTES", 3000)
    options: dict[str, Any] = {"fingerprint": FINGERPRINT, "provenance": provenance()}
    request = {"prompts": ["é" * 10] * 100, "last": "x" * 165}
    with RunRecorder(tmp_path / "run", request=request, **options) as recorder:
        hostile.stage(recorder)
    written = (recorder.partial / "call.json").read_bytes()
    assert (2400 < len(written) <= 3000, written.count(b"\n")) == (True, 1)
    assert _partial.request_of(recorder.partial) == request
    request["prompts"] = ["é" * 10] * 140
    with pytest.raises(StoreError, match=r"its call\.json would have .*; use fewer prompts\."):
        RunRecorder(tmp_path / "more", request=request, **options).__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr.partial"]
