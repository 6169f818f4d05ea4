"""What a whole direction study on a server costs: few jobs, little traffic, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import xarray as xr
from click.testing import CliRunner

import refusal_nn as rn
from refusal_nn.cli import cli
from refusal_nn.errors import ModelError
from refusal_nn.recorded import Keeping
from tests.ndif.control import Stack

MOST_JOBS = 12
MOST_MEGABYTES = 800
BYTES_A_TOKEN = 8


@pytest.fixture(scope="module")
def runs(stack: Stack, tmp_path_factory) -> list[xr.DataTree]:
    """Extract, score, select and evaluate of tiny-bench, each job of them counted by the server."""
    folder: Path = tmp_path_factory.mktemp("pipeline")
    where = ["--backend", "ndif", "--host", stack.url(), "--stores", str(folder)]
    words = ["demo", *where, "--name", "demo", "--max-new-tokens", "48"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    steps = ("extract", "score", "select", "evaluate")
    return [xr.open_datatree(folder / f"demo-{step}.zarr", engine="zarr") for step in steps]


def numeric_bytes(tree: xr.DataTree) -> int:
    return sum(
        variable.nbytes
        for node in tree.subtree
        for variable in node.to_dataset(inherit=False).data_vars.values()
        if variable.dtype.kind in "biuf"
    )


def test_a_study_takes_few_jobs_and_downloads_little_more_than_it_stores(runs) -> None:
    jobs = [run.attrs["jobs"] for run in runs if "jobs" in run.attrs]
    assert len(jobs) == 3  # selecting runs no model
    assert sum(entry["submitted"] for entry in jobs) <= MOST_JOBS
    assert all(entry["repeated"] == 0 for entry in jobs)
    received = sum(entry["bytes_received"] for entry in jobs)
    tokens = int(runs[-1]["n_tokens"].sum())
    assert 0 < received <= 2 * sum(map(numeric_bytes, runs)) + BYTES_A_TOKEN * tokens


MEASURE = """
import json, sys
import refusal_nn as rn
def peak():  # not ru_maxrss, which a new process inherits from the one that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
model = rn.load_model(sys.argv[1], backend="ndif")
sizes = {"loaded": peak(), "parameters": sum(p.numel() for p in model.module.parameters())}
sizes["meta"] = all(p.is_meta for p in model.module.parameters())
if len(sys.argv) > 2:
    prompts = rn.load_prompts("tiny-bench")
    table = rn.directions.extract(model, prompts.train)
    rn.directions.score(model, table, prompts.val)
    sizes["after"] = peak()
print(json.dumps(sizes))
"""


def measured(*words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_clients_memory_does_not_grow_with_the_model(stack: Stack) -> None:
    small = measured("refusal-nn/tiny-refuser", "work")
    large = measured("refusal-nn/one-billion")
    assert large["meta"]
    assert large["parameters"] > 0.9e9
    assert small["after"] < MOST_MEGABYTES
    assert large["loaded"] < MOST_MEGABYTES
    assert large["loaded"] < small["loaded"] + 100  # of 4 GB of weights in float32


def test_a_hub_model_has_one_identity_here_and_there(stack: Stack) -> None:
    here = rn.load_model("refusal-nn/tiny-refuser")
    there = rn.load_model("refusal-nn/tiny-refuser", backend="ndif", host=stack.url())
    ours, theirs = here.identity(), there.identity()
    assert len(ours["revision"]) == 40
    assert {k for k in ours if ours[k] != theirs[k]} == {"device", "backend"}


def test_the_server_tells_the_commit_it_runs(stack: Stack) -> None:
    there = rn.load_model("refusal-nn/tiny-refuser", backend="ndif", host=stack.url())
    there.remote.pinned = "f" * 40
    with pytest.raises(ModelError, match="but the hub has ffffffffffff now"):
        rn.tracing.verify(there)


def test_the_status_line_follows_the_jobs(stack: Stack, tmp_path: Path) -> None:
    class Line:
        seen: ClassVar[list[str]] = []

        def __call__(self, stage: str, done: int, total: int) -> None:
            pass

        def status(self, line: str) -> None:
            self.seen.append(line)

    model = rn.load_model("tiny-refuser", backend="ndif", host=stack.url())
    prompts = rn.load_prompts("tiny-bench").train
    rn.directions.extract_run(model, prompts, Keeping(tmp_path, "run", progress=Line()))
    assert all(line.startswith(f"{stack.url()}: ") for line in Line.seen)
    assert any("1 submitted" in line for line in Line.seen)
