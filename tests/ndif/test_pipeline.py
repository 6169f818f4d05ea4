"""What a whole direction study on a server costs: few jobs, little traffic, little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import httpx
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

import refusal_nn as rn
from refusal_nn.cli import cli
from refusal_nn.errors import ModelError
from refusal_nn.runs import Keeping
from tests.ndif.control import Stack
from tests.patience import limit

MOST_JOBS = 12
MOST_MEGABYTES = 800
BYTES_A_TOKEN = 8


STEPS = ("extract", "score", "select", "evaluate")


def demo(folder: Path, *where: str) -> list[xr.DataTree]:
    """Extract, score, select and evaluate of tiny-bench."""
    words = ["demo", *where, "--stores", str(folder), "--name", "demo", "--max-new-tokens", "48"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    return [xr.open_datatree(folder / f"demo-{step}.zarr", engine="zarr") for step in STEPS]


class Wire:
    """What passes between this process and others, seen below all code of ours."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.jobs = 0
        self.result_bytes = 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        inner = httpx.HTTPTransport.handle_request

        def handle_request(transport, request: httpx.Request) -> httpx.Response:
            response = inner(transport, request)
            if str(request.url) == f"{self.host}/request":
                self.jobs += 1
            elif request.method == "GET" and "X-Amz-Signature" in str(request.url):
                self.result_bytes += int(response.headers["content-length"])
            return response

        patch.setattr(httpx.HTTPTransport, "handle_request", handle_request)


@pytest.fixture(scope="module")
def wire(stack: Stack) -> Wire:
    return Wire(stack.url())


@pytest.fixture(scope="module")
def runs(stack: Stack, wire: Wire, tmp_path_factory) -> list[xr.DataTree]:
    with pytest.MonkeyPatch.context() as patch:
        wire.watch(patch)
        folder = tmp_path_factory.mktemp("pipeline")
        return demo(folder, "--backend", "ndif", "--host", stack.url())


@pytest.mark.long
def test_the_demo_gives_the_same_numbers_as_here(runs, tmp_path: Path) -> None:
    for step, there, here in zip(STEPS, runs, demo(tmp_path), strict=True):
        assert there.groups == here.groups
        for path in here.groups:
            a, b = here[path].to_dataset(), there[path].to_dataset()
            assert set(a.variables) == set(b.variables)
            for name in a.variables:
                x, y, where = a[name].values, b[name].values, f"{step} {path} {name}"
                if x.dtype.kind == "f":
                    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5, err_msg=where)
                else:
                    np.testing.assert_array_equal(y, x, err_msg=where)


def numeric_bytes(tree: xr.DataTree) -> int:
    return sum(
        variable.nbytes
        for node in tree.subtree
        for variable in node.to_dataset(inherit=False).data_vars.values()
        if variable.dtype.kind in "biuf"
    )


@pytest.mark.long
def test_a_study_takes_few_jobs_and_downloads_little_more_than_it_stores(runs, wire: Wire) -> None:
    jobs = [run.attrs["jobs"] for run in runs if "jobs" in run.attrs]
    assert len(jobs) == 3  # selecting runs no model
    assert sum(entry["submitted"] for entry in jobs) <= MOST_JOBS
    assert all(entry["repeated"] == 0 for entry in jobs)
    received = sum(entry["bytes_received"] for entry in jobs)
    tokens = int(runs[-1]["n_tokens"].sum())
    assert sum(entry["submitted"] for entry in jobs) == wire.jobs
    assert received == wire.result_bytes
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
from refusal_nn.tracing import Capture, forward_request, pad
from refusal_nn.backends._payload import Batches
request = forward_request(model, pad([[5, 6, 7]] * 32, 0), [Capture("x", "resid_pre")])
passes = Batches(model, lambda i: [request])
sizes["job"] = len(passes.blob(passes.job([0])))
sizes["serialised"] = peak()
if len(sys.argv) > 2:
    prompts = rn.load_prompts("tiny-bench")
    table = rn.directions.extract(model, prompts.train)
    rn.directions.score(model, table, prompts.val)
    sizes["after"] = peak()
print(json.dumps(sizes))
"""


def measured(*words: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], capture_output=True, text=True, timeout=limit(120)
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.long
def test_the_clients_memory_does_not_grow_with_the_model(stack: Stack) -> None:
    small = measured("refusal-nn/tiny-refuser", "work")
    large = measured("refusal-nn/one-billion")
    assert large["meta"]
    assert large["parameters"] > 0.9e9
    assert small["after"] < MOST_MEGABYTES
    assert large["serialised"] < MOST_MEGABYTES
    for when in ("loaded", "serialised"):
        assert large[when] < small[when] + 100  # of 4 GB of weights in float32
    assert large["job"] < 1e6


def test_a_hub_model_has_one_identity_here_and_there(stack: Stack) -> None:
    here = rn.load_model("refusal-nn/tiny-refuser")
    there = rn.load_model("refusal-nn/tiny-refuser", backend="ndif", host=stack.url())
    ours, theirs = here.identity(), there.identity()
    assert len(ours["revision"]) == 40
    assert {k for k in ours if ours[k] != theirs[k]} == {"device", "backend"}


def test_the_server_tells_the_commit_it_runs(stack: Stack) -> None:
    there = rn.load_model("refusal-nn/tiny-refuser", backend="ndif", host=stack.url())
    there.backend.pinned = "f" * 40
    with pytest.raises(
        ModelError, match=r"but ffffffffffff is what the hub has now; pass --revision [0-9a-f]{40},"
    ):
        rn.tracing.verify(there)


def test_the_commit_that_the_server_runs_can_be_asked_for(stack: Stack) -> None:
    name, where = "refusal-nn/tiny-refuser", {"backend": "ndif", "host": stack.url()}
    there = rn.load_model(name, **where)
    rn.tracing.verify(there)
    service = there.backend.service

    def deployed() -> set[str]:  # what is on its way in or out has no key
        return {str(d["model_key"]) for d in service.status().values() if "model_key" in d}

    before = deployed()
    assert before
    for revision in (there.revision, "main"):
        asked = rn.load_model(name, revision=revision, **where)
        rn.tracing.verify(asked)
        assert asked.identity() == there.identity()
    assert deployed() == before
    wrong = rn.load_model(name, revision=there.revision, **where)
    wrong.backend.pinned = "f" * 40
    with pytest.raises(ModelError, match="but ffffffffffff was asked for"):
        rn.tracing.verify(wrong)


def test_the_status_line_follows_the_jobs(stack: Stack, tmp_path: Path) -> None:
    class Line:
        seen: ClassVar[list[str]] = []

        def __call__(self, stage: str, done: int, total: int) -> None:
            pass

        def status(self, line: str) -> None:
            self.seen.append(line)

    model = rn.load_model("tiny-refuser", backend="ndif", host=stack.url())
    prompts = rn.load_prompts("tiny-bench").train
    rn.record(rn.directions.extract, model, prompts, keep=Keeping(tmp_path, "run", progress=Line()))
    assert all(line.startswith(f"{stack.url()}: ") for line in Line.seen)
    assert any("1 submitted" in line for line in Line.seen)
