"""`direction extract` killed at random moments, then `runs resume`: the same store each time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

from refusal_nn import store
from refusal_nn.store.provenance import VOLATILE
from refusal_nn.testing import tiny_module, tiny_tokenizer
from tests.directions.conftest import made_prompts
from tests.long.tier import Extent
from tests.patience import limit

NAME = "killed"


def start(folder: Path, *argv: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    shim = "import conftest, sys; from refusal_nn.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", shim, *argv],
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(folder: Path, *argv: str) -> None:
    process = start(folder, *argv)
    _, errors = process.communicate(timeout=limit(60))
    assert process.returncode == 0, errors.decode()


def extract(stores: str) -> list[str]:
    given = ["--model", "tiny-llama", "--prompts", "prompts.jsonl", "--batch-size", "1"]
    tokens = ["--refusal-tokens", "w7,8", "--no-screen"]
    return ["direction", "extract", *given, *tokens, "--stores", stores, "--name", NAME]


def content(path: Path) -> dict[str, xr.Dataset]:
    """Every group of a run, without what may differ: times, attempts, and the stores folder."""
    tree = xr.open_datatree(path, engine="zarr", chunks=None).load()
    groups = {node.path: node.to_dataset() for node in tree.subtree}
    skipped = {*VOLATILE, "command"}
    groups["/"].attrs = {k: v for k, v in groups["/"].attrs.items() if k not in skipped}
    return groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_files(tmp_path_factory.mktemp("kill"))


def with_files(base: Path) -> Path:
    """A folder with a model and prompts."""
    tiny_module("llama").save_pretrained(base / "tiny-llama")
    tiny_tokenizer().save_pretrained(base / "tiny-llama")
    rows = made_prompts(40).to_rows()
    (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return base


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> tuple[dict[str, xr.Dataset], float]:
    """The run as it should be, and the seconds it took from its first file to its last."""
    process = start(folder, *extract("whole"))
    begun = ended = None
    while process.poll() is None and ended is None:
        if begun is None and (folder / "whole" / f"{NAME}.zarr.partial").exists():
            begun = time.monotonic()
        if (folder / "whole" / f"{NAME}.zarr").exists():
            ended = time.monotonic()
        time.sleep(0.005)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert begun is not None
    assert ended is not None
    return content(folder / "whole" / f"{NAME}.zarr"), ended - begun


def kill_and_resume(folder: Path, stores: str, after: float) -> bool:
    """Kill some seconds after the run began; whether it was partial then."""
    process = start(folder, *extract(stores))
    # how long Python takes to start varies more than how long the run takes, so count from its start
    while process.poll() is None and not list((folder / stores).glob(f"{NAME}.zarr*")):
        time.sleep(0.002)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    partial = (folder / stores / f"{NAME}.zarr.partial").exists()
    complete = (folder / stores / f"{NAME}.zarr").exists()
    if partial or complete:
        finish(folder, "runs", "resume", NAME, "--stores", stores)
    else:  # killed before the run began: there is nothing to resume
        finish(folder, *extract(stores))
    return partial


def check(folder: Path, stores: str, expected: dict[str, xr.Dataset]) -> None:
    path = folder / stores / f"{NAME}.zarr"
    store.verify(path)
    found = content(path)
    assert found.keys() == expected.keys()
    for group, dataset in expected.items():
        xr.testing.assert_identical(found[group], dataset)


@pytest.mark.long(n=20, sample=3, seed=0)
def test_kills_at_random_moments_leave_the_identical_store(
    folder: Path, undisturbed: tuple[dict[str, xr.Dataset], float], extent: Extent
) -> None:
    expected, seconds = undisturbed
    rng = random.Random(extent.seed)
    interrupted = 0
    for k in range(extent.n):
        after = rng.uniform(0, seconds)
        met = kill_and_resume(folder, f"stores-{k}", after)
        interrupted += met
        if not met:  # done by then: the machine has less else to do than when the run was timed
            seconds = min(seconds, after)
        check(folder, f"stores-{k}", expected)
    assert interrupted >= extent.n // 2, f"{interrupted} of {extent.n} kills met a partial run"


def test_a_killed_extraction_resumes_to_the_identical_store(
    folder: Path, undisturbed: tuple[dict[str, xr.Dataset], float]
) -> None:
    expected, seconds = undisturbed
    kill_and_resume(folder, "stores-once", seconds / 2)
    check(folder, "stores-once", expected)
