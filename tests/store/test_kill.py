"""SIGKILL at any moment, then resume: the same run to the byte, times and attempts apart."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from refusal_nn.store import open_runs, verify
from tests.long.tier import Extent
from tests.store.synthetic import analyse, content, recorder


def attempts(folder: Path, *steps: int) -> list[dict[str, Any]]:
    """Kill the analysis before each of these file-system steps (0: never) and resume it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.synthetic", str(folder), *map(str, steps)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(report: dict[str, Any], whole: dict[str, str]) -> None:
    where = f"killed before step {report['step']}"
    assert report["code"] == -signal.SIGKILL, where
    # whatever is not finished is called partial
    assert set(report["visible"]) <= {"run.zarr.partial", "run.zarr"}, where
    assert report["resumed"] == 0, where
    assert report["left"] == ["run.zarr"], where
    assert report["content"] == whole, where


def test_a_run_killed_before_some_file_system_step_resumes_to_the_same_store(tmp_path):
    (whole,) = attempts(tmp_path, 0)
    steps = whole["steps"]
    assert steps > 300
    # at the start, in a stage, while committing and after the rename
    chosen = [3, steps // 4, steps - steps // 10, steps - 5]
    for report in attempts(tmp_path, *chosen):
        check(report, whole["content"])


@pytest.mark.long(n=100)
def test_a_run_killed_before_any_file_system_step_resumes_to_the_same_store(
    tmp_path: Path, extent: Extent
) -> None:
    (whole,) = attempts(tmp_path, 0)
    steps = whole["steps"]
    # all steps of making, finishing and tidying up; every fifth of the many alike between
    chosen = sorted({*range(1, 31), *range(31, steps, 5), *range(steps - 20, steps + 1)})
    reports = attempts(tmp_path, *chosen)
    extent.n = len(reports)
    assert len(reports) == len(chosen)
    for report in reports:
        check(report, whole["content"])


@pytest.mark.long(n=20, sample=4, seed=20)
def test_a_run_killed_at_random_times_resumes_to_the_same_store(
    tmp_path: Path, extent: Extent
) -> None:
    analyse(recorder(tmp_path / "whole"))
    whole = content(tmp_path / "whole" / "run.zarr")
    rng = random.Random(extent.seed)
    states = []
    for i in range(extent.n):
        command = [sys.executable, "-m", "tests.store.synthetic", str(tmp_path / str(i)), "full"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randint(1, 9)):  # of the nine lines that tell of progress
                process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
        folder = tmp_path / str(i) / "full"
        states += [run.state for run in open_runs(folder)]
        again = recorder(folder)
        if not again.already_complete:
            analyse(again)
        assert content(folder / "run.zarr") == whole
        assert verify(folder / "run").n_files == len(whole) - 1
    assert len(states) == extent.n
    assert states.count("partial") >= extent.n // 2
