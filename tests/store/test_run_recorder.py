"""A run directory: names, conflicts, one writer, failures that leave it resumable."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from refusal_nn.errors import StoreError, VerificationError, WorkError
from refusal_nn.store import JobLedger, RunRecorder, forget_jobs, open_runs, request_of, verify
from refusal_nn.store.run_recorder import RunRecorder as Private
from tests.patience import limit
from tests.store import synthetic
from tests.store.synthetic import (
    FINGERPRINT,
    analyse,
    batches,
    compute_prompts,
    content,
    prompt_template,
    provenance,
    recorder,
)


def begin(folder: Path, upto: int = 2) -> RunRecorder:
    """A run interrupted by an error in batch number `upto`."""
    rec = recorder(folder)

    def compute(i: int):
        if i == upto:
            raise RuntimeError("the model failed")
        return compute_prompts(prompt_template(), batches()[i])

    with pytest.raises(RuntimeError, match="the model failed"):
        rec.stage("scores", prompt_template(), batches(), compute)
    return rec


def test_a_complete_run_is_reported_and_not_computed_again(tmp_path):
    analyse(recorder(tmp_path))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = recorder(tmp_path)
    assert again.already_complete
    assert again.open()["scores"].sizes["prompt"] == synthetic.N
    with pytest.raises(StoreError, match="is complete; open it"):
        again.stage("scores", prompt_template(), batches(), lambda i: pytest.fail("computed"))
    with pytest.raises(StoreError, match="is complete; open it"):
        again.commit({})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("complete", [True, False])
def test_a_name_taken_by_another_request_is_refused_and_left_alone(tmp_path, complete):
    if complete:
        analyse(recorder(tmp_path))
    else:
        begin(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(StoreError, match=r"fingerprint abababab, this one is 12121212.*--name"):
        RunRecorder(
            tmp_path / "run.zarr", fingerprint="12" * 32, provenance=provenance(), request={}
        )
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_an_error_in_a_batch_leaves_a_partial_run_that_continues_with_that_batch(tmp_path):
    begin(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr.partial"]
    assert open_runs(tmp_path)["run"].state == "partial"
    done = []
    rec = recorder(tmp_path)
    assert rec.resumed
    rec.stage(
        "scores",
        prompt_template(),
        batches(),
        lambda i: done.append(i) or compute_prompts(prompt_template(), batches()[i]),
    )
    assert done == [2, 3]
    analyse(rec)
    analyse(recorder(tmp_path / "straight"))
    assert content(tmp_path / "run.zarr") == content(tmp_path / "straight" / "run.zarr")


@pytest.mark.parametrize("batches_done", [0, 1])
def test_an_abandoned_run_goes_unless_it_holds_a_batch(tmp_path, batches_done):
    rec = begin(tmp_path, upto=batches_done)
    rec.abandon()
    assert rec.partial.is_dir() == bool(batches_done)
    analyse(recorder(tmp_path))


@pytest.mark.parametrize("with_batches", [False, True])
@pytest.mark.parametrize(
    ("state", "kept"), [("submitted", True), ("done", True), ("failed", False)]
)
def test_a_run_with_jobs_at_a_server_is_not_abandoned(tmp_path, state, kept, with_batches):
    rec = begin(tmp_path, upto=0)
    ledger = JobLedger(rec.partial / "scores.jobs.json")
    ledger.submitted("a", [0, 1], host="http://there", sent=1)
    ledger.note("a", state=state)
    rec.abandon(with_batches=with_batches)
    assert rec.partial.is_dir() == kept
    if kept:
        assert [e["id"] for e in JobLedger(ledger.file).jobs] == ["a"]


def test_jobs_are_given_up_by_hand_while_nobody_works_on_the_run(tmp_path):
    rec = begin(tmp_path, upto=0)
    ledger = JobLedger(rec.partial / "scores.jobs.json")
    for job, state in (("a", "submitted"), ("b", "done"), ("c", "submitted")):
        ledger.submitted(job, [0], host="http://there", sent=1)
        ledger.note(job, state=state)
    alive = (rec.partial / "lock").stat().st_mtime
    assert forget_jobs(rec.partial) == 2
    assert [e["state"] for e in JobLedger(ledger.file).jobs] == ["lost", "done", "lost"]
    assert (rec.partial / "lock").stat().st_mtime == alive
    with recorder(tmp_path), pytest.raises(StoreError, match="is being written"):
        forget_jobs(rec.partial)


def test_a_complete_run_is_never_abandoned(tmp_path):
    rec = recorder(tmp_path)
    analyse(rec)
    rec.abandon()
    verify(rec.path)


def test_a_keyboard_interrupt_frees_the_run_for_another_process(tmp_path):
    rec = recorder(tmp_path)

    def compute(i: int):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rec.stage("scores", prompt_template(), batches(), compute)
    assert recorder(tmp_path).resumed


def test_the_finished_run_holds_provenance_and_nothing_of_this_machine(tmp_path):
    tree = analyse(recorder(tmp_path))
    attrs = tree.attrs
    assert attrs["complete"] is True
    assert attrs["name"] == "run"
    assert attrs["fingerprint"] == FINGERPRINT
    assert attrs["attempts"] == 1
    assert attrs["wall_time"] > 0
    assert json.loads(attrs["interventions"]) == provenance()["interventions"]
    assert {k: attrs[k] for k in ("model", "seed", "method", "n_layers")} == {
        "model": "tiny",
        "seed": 0,
        "method": "synthetic",
        "n_layers": 4,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]
    for path in (tmp_path / "run.zarr").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_a_run_keeps_the_request_that_began_it(tmp_path):
    begin(tmp_path)
    assert request_of(tmp_path / "run") == {"analysis": "synthetic"}
    analyse(recorder(tmp_path))
    assert request_of(tmp_path / "run") == {"analysis": "synthetic"}
    (tmp_path / "run.zarr" / "call.json").write_text("[" * 5000)
    with pytest.raises(StoreError, match=r"run 'run'.*call.json.* nested too deeply"):
        request_of(tmp_path / "run")
    with pytest.raises(VerificationError, match=r"call\.json does not match its hash"):
        verify(tmp_path / "run")


def test_attempts_and_their_time_add_up(tmp_path):
    rec = begin(tmp_path)
    path = rec.partial / "attempts.json"
    entries = json.loads(path.read_text())
    entries[0]["started"] -= 100.0  # the first attempt ran 100 s until its last sign of life
    path.write_text(json.dumps(entries))
    tree = analyse(recorder(tmp_path))
    assert tree.attrs["attempts"] == 2
    assert 100 <= tree.attrs["wall_time"] < 100 + min(limit(10), 90)


def test_two_writers_in_one_process_are_refused(tmp_path):
    with recorder(tmp_path), pytest.raises(StoreError, match=f"written by process {os.getpid()}"):
        recorder(tmp_path)
    assert recorder(tmp_path).resumed


def test_a_live_writer_in_another_process_is_named_and_a_killed_one_is_not_in_the_way(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.store.synthetic import recorder\n"
        "r = recorder(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,  # it ends no earlier than this test
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(StoreError, match=f"written by process {process.pid} on"):
            recorder(tmp_path)
        process.kill()
    assert recorder(tmp_path).resumed


def test_a_lock_of_another_host_is_respected_until_it_is_deleted(tmp_path):
    rec = begin(tmp_path)
    lock = rec.partial / "lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(StoreError, match=r"process 1 on elsewhere.*delete the file"):
        recorder(tmp_path)
    lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    assert recorder(tmp_path).resumed


def test_a_file_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "run.zarr").write_text("mine")
    with pytest.raises(StoreError, match="in the way and is not a run"):
        recorder(tmp_path)
    (tmp_path / "run.zarr").unlink()
    (tmp_path / "run.zarr.partial").write_text("mine")
    with pytest.raises(StoreError, match="a file is in the way"):
        recorder(tmp_path)
    (tmp_path / "run.zarr.partial").unlink()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="a file is in the way"):
        recorder(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def fail_on_write(monkeypatch, code: int, match: str) -> None:
    """Make the file system refuse to create files whose path contains `match`."""
    true_open = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if match in str(self) and ("w" in mode or "+" in mode):
            raise OSError(code, os.strerror(code), str(self))
        return true_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(builtins, "open", builtins.open)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (errno.ENOSPC, WorkError, "the disk is full while writing 'run.zarr'.*resume"),
        (errno.EACCES, StoreError, "cannot write to .*--stores"),
        (errno.EROFS, StoreError, "cannot write to .*--stores"),
        (errno.EIO, WorkError, "cannot write"),
    ],
)
@pytest.mark.parametrize("where", ["scores/completion/c/", ".init-scores", ".commit", "run.zarr.p"])
def test_a_failing_disk_is_one_sentence_and_leaves_a_run_that_resumes(
    tmp_path, monkeypatch, code, error, message, where
):
    with monkeypatch.context() as patch:
        fail_on_write(patch, code, where)
        with pytest.raises(error, match=message):
            analyse(recorder(tmp_path))
    left = [p.name for p in tmp_path.iterdir()]
    assert left in (["run.zarr.partial"], [])
    analyse(recorder(tmp_path))
    assert verify(tmp_path / "run").n_files > 30


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=r"cannot write to .*--stores"):
            recorder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("missing", ["model", "seed", "versions", "prompts_hash", "command"])
def test_provenance_is_required_before_any_work(tmp_path, missing):
    given = {k: v for k, v in provenance().items() if k != missing}
    with pytest.raises(StoreError, match=f"provenance lacks {missing}"):
        RunRecorder(tmp_path / "run", fingerprint="0" * 64, provenance=given, request={})
    assert not list(tmp_path.iterdir())


def test_results_cannot_replace_provenance(tmp_path):
    rec = recorder(tmp_path)
    for attrs in ({"model": "another"}, {"fingerprint": "0"}, {"complete": False}):
        with pytest.raises(StoreError, match="would replace provenance"):
            rec.commit({}, attrs)
    rec.commit({}, {"model": "tiny"})


def test_data_read_from_another_run_do_not_bring_its_provenance_along(tmp_path):
    other = analyse(recorder(tmp_path / "first")).to_dataset().load()
    assert other.attrs["fingerprint"] == FINGERPRINT
    given = provenance(model="second", seed=7)
    rec = RunRecorder(tmp_path / "second", fingerprint="0" * 64, provenance=given, request={})
    tree = rec.commit({"/": other, "part": other})
    assert (tree.attrs["model"], tree.attrs["seed"]) == ("second", 7)
    assert tree.attrs["method"] == "synthetic"
    assert "model" not in tree["part"].attrs
    assert "created" not in tree["part"].attrs


def test_every_array_has_a_checksum_and_every_chunk_a_file(tmp_path):
    analyse(recorder(tmp_path))
    root = zarr.open_group(tmp_path / "run.zarr", mode="r")
    arrays = [m for _, m in root.members(max_depth=None) if isinstance(m, zarr.Array)]
    assert len(arrays) > 20
    for array in arrays:
        assert any(type(c).__name__ == "Crc32cCodec" for c in array.compressors), array.name
        assert array.nchunks_initialized == array.nchunks, array.name
    # n_tokens is all zeros: the case in which zarr leaves chunks out by default
    assert not np.asarray(root["scores/n_tokens"]).any()


def test_hundred_small_batches_cost_little(tmp_path):
    template = prompt_template(100)
    regions = batches(100, 1)
    parts = [compute_prompts(template, r) for r in regions]
    rec = recorder(tmp_path)
    start = time.process_time()
    rec.stage("scores", template, regions, lambda i: parts[i])
    # measured 7 ms a batch of five variables; the bar leaves room for a busy machine
    assert (time.process_time() - start) / 100 < 0.03


def test_the_public_name_is_the_class():
    assert RunRecorder is Private


def test_a_stage_that_lost_a_label_is_refused_and_one_that_forgot_it_is_a_label_goes_on(tmp_path):
    def goes_on():
        rec = recorder(tmp_path)
        return rec.stage(
            "scores",
            prompt_template(),
            batches(),
            lambda i: compute_prompts(prompt_template(), batches()[i]),
        )

    folder = begin(tmp_path).partial / "scores"
    node = json.loads((folder / "zarr.json").read_text())
    node["attributes"]["coordinates"] = "category"
    (folder / "zarr.json").write_text(json.dumps(node))
    assert goes_on()["harm"].values.tolist() == prompt_template()["harm"].values.tolist()
    shutil.rmtree(folder / "harm")
    with pytest.raises(StoreError, match=r"'harm' is not as it was begun; .* begin again"):
        goes_on()
