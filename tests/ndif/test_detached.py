"""Jobs that nobody waits for are found and collected by a later process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

from tests.ndif.control import Stack
from tests.patience import limit, wait_for


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refusal_nn", *words],
        capture_output=True,
        text=True,
        timeout=limit(60),
    )


EXTRACT = ("direction", "extract", "--model", "tiny-refuser", "--prompts", "tiny-bench")


@pytest.mark.long
def test_a_detached_run_is_listed_and_completed_by_later_processes(
    stack: Stack, tmp_path: Path
) -> None:
    where = ("--backend", "ndif", "--host", stack.url(), "--stores", str(tmp_path))
    left = cli(*EXTRACT, *where, "--name", "d", "--detach", "--json")
    assert left.returncode == 0, left.stderr
    ids = set(json.loads(left.stdout)["jobs"])
    assert ids

    def ready() -> list[dict[str, str]]:
        listed = cli("remote", "jobs", "--stores", str(tmp_path), "--host", stack.url(), "--json")
        jobs = json.loads(listed.stdout)
        done = {"done: ready to collect", "collected"}
        return jobs if {job["state"] for job in jobs} <= done else []

    jobs = wait_for(ready, "the jobs of the first stage", every=0.5)
    assert {job["job"] for job in jobs} == ids
    assert {job["run"] for job in jobs} == {"d"}

    again = ("--stores", str(tmp_path), "--host", stack.url())
    stages = 0
    while not (tmp_path / "d.zarr").is_dir() and stages < 5:
        wait_for(ready, f"the jobs of stage {stages}", every=0.5)
        further = cli("runs", "resume", "d", *again, "--detach")
        assert further.returncode == 0, further.stderr
        stages += 1
    assert stages > 1  # each stage is submitted by a process that collected the one before
    assert (tmp_path / "d.zarr").is_dir()

    whole = cli(*EXTRACT, *where, "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    a, b = (xr.open_datatree(tmp_path / f"{n}.zarr", engine="zarr") for n in ("d", "whole"))
    for path in b.groups:
        xr.testing.assert_equal(a[path].to_dataset(), b[path].to_dataset())
    assert a.attrs["jobs"]["submitted"] == b.attrs["jobs"]["submitted"]
    assert ids < set(a.attrs["jobs"]["ids"])
    assert a.attrs["jobs"]["repeated"] == 0


def test_resuming_without_detach_waits_and_finishes(stack: Stack, tmp_path: Path) -> None:
    where = ("--backend", "ndif", "--host", stack.url(), "--stores", str(tmp_path))
    assert cli(*EXTRACT, *where, "--name", "d", "--detach").returncode == 0
    done = cli("runs", "resume", "d", "--stores", str(tmp_path), "--host", stack.url())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d.zarr").is_dir()


@pytest.mark.parametrize("option", ["--detach", "--host=http://127.0.0.1:9", "--deadline=5"])
def test_options_of_a_server_are_refused_without_one(option: str, tmp_path: Path) -> None:
    result = cli(*EXTRACT, "--stores", str(tmp_path), option)
    assert result.returncode == 2
    assert "--backend ndif" in result.stderr
