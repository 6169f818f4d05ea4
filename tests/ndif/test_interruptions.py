"""A part of the server killed -9 in the middle of a run costs time, not results."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import refusal_nn as rn
from refusal_nn.backends import Limits
from refusal_nn.errors import BackendError
from refusal_nn.runs import Keeping, Run, record
from refusal_nn.store import JobLedger
from refusal_nn.store.provenance import VOLATILE
from tests.long.tier import sampled
from tests.ndif.control import Stack
from tests.patience import slowness

# seconds, on a machine as fast as the one they were set on
DEADLINE = 15.0
# a deadline, its retries, and a job that is being submitted; not `limit`, which would let a client
# pass that waits several deadlines
PATIENCE = 2 * DEADLINE + 25


@pytest.fixture(scope="module")
def pace() -> float:
    """How many times longer things take on this machine."""
    return slowness()


@pytest.fixture(scope="module")
def limits(pace: float) -> Limits:
    """Several jobs a stage."""
    return Limits(tokens=2_500, deadline=DEADLINE * pace, retries=3, backoff=0.5)


def extract(stack: Stack, limits: Limits, stores: Path, name: str, progress: Any = None) -> Run:
    model = rn.load_model("tiny-refuser", backend="ndif", host=stack.url(), limits=limits)
    prompts = rn.load_prompts("tiny-bench").train[:320]
    keeping = Keeping(stores, name, progress=progress)
    return record(rn.directions.extract, model, prompts, batch_size=32, keep=keeping)


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, limits: Limits, tmp_path_factory) -> xr.DataTree:
    run = extract(stack, limits, tmp_path_factory.mktemp("undisturbed"), "run")
    assert run.tree.attrs["jobs"]["submitted"] > 5
    return run.tree.load()


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str, tuple[int, ...]]]:
    """What happened, ledger and batches of every job sent or returned, in order, in any attempt."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    submitted, ended = JobLedger.submitted, JobLedger.ended

    def sending(self: JobLedger, job: str, batches: Any, **facts: Any) -> None:
        found.append(("sent", self.file.name if self.file else "", tuple(batches)))
        submitted(self, job, batches, **facts)

    def ending(self: JobLedger, job: str, state: str, **facts: Any) -> None:
        (entry,) = [e for e in self.jobs if e["id"] == job]
        found.append((state, self.file.name if self.file else "", tuple(entry["batches"])))
        ended(self, job, state, **facts)

    monkeypatch.setattr(JobLedger, "submitted", sending)
    monkeypatch.setattr(JobLedger, "ended", ending)
    return found


def computed_again(events: list[tuple[str, str, tuple[int, ...]]]) -> list[tuple[str, int]]:
    """Batches that were sent after a job had returned them."""
    back: set[tuple[str, int]] = set()
    found = []
    for what, stage, batches in events:
        if what == "sent":
            found += [(stage, b) for b in batches if (stage, b) in back]
        elif what == "done":
            back |= {(stage, b) for b in batches}
    return found


def once(stage: str, done: int, action: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A progress callback that acts when a stage has so many batches."""
    acted = False

    def progress(name: str, count: int, total: int) -> None:
        nonlocal acted
        if name == stage and count >= done and not acted:
            acted = True
            action()

    return progress


@pytest.mark.parametrize("part", sampled(["actor", "api", "redis", "dispatcher"], 1))
def test_a_run_survives_the_death_of(
    part: str,
    stack: Stack,
    limits: Limits,
    pace: float,
    undisturbed: xr.DataTree,
    tmp_path: Path,
    events,
) -> None:
    began: list[float] = []

    def kill() -> None:
        stack.kill(part)
        began.append(time.monotonic())

    failure: BackendError | None = None
    try:
        run = extract(stack, limits, tmp_path, "run", once("sums", 2, kill))
    except BackendError as error:
        failure, ended = error, time.monotonic()
    try:
        if failure is not None:
            assert ended - began[0] < PATIENCE * pace
            assert "resume" in str(failure)
            if part != "actor":  # which Ray starts again
                stack.restart(part)
            run = extract(stack, limits, tmp_path, "run")
    finally:
        if part != "actor":
            stack.start(part)
    assert began, "nothing was killed"
    assert any(what == "done" for what, _, _ in events)
    assert computed_again(events) == []  # also where the client recovered by itself
    tree = run.tree.load()
    for path in undisturbed.groups:
        xr.testing.assert_equal(tree[path].to_dataset(), undisturbed[path].to_dataset())
    skipped = {*VOLATILE, "command"}
    assert {k: v for k, v in tree.attrs.items() if k not in skipped} == {
        k: v for k, v in undisturbed.attrs.items() if k not in skipped
    }
