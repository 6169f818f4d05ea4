"""Two sizes of one test: a sample in every run, in full when asked for, with the result on record.

``@pytest.mark.long`` marks what takes minutes and runs with ``--full`` alone.
``@pytest.mark.long(n=20, sample=3, seed=0)`` marks a test that takes its size from the fixture
``extent``: 3 of what it counts in every run, 20 with ``--full``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.long import ledger

_SECONDS = pytest.StashKey[float]()
_OUTCOME = pytest.StashKey[str]()
_EXTENT = pytest.StashKey["Extent"]()


@dataclass
class Extent:
    """How much of a long test to do.

    Attributes
    ----------
    n : int
        How many kills, draws or cases. A test that finds out itself how many there are sets it.
    seed : int
        What they are drawn with.
    full : bool
        Whether this is all of it.
    """

    n: int
    seed: int
    full: bool


def sampled(values: Sequence[Any], n: int, *, seed: int = 0) -> list[Any]:
    """Parameters of a test: ``n`` drawn for every run, the others for the long one."""
    chosen = set(random.Random(seed).sample(range(len(values)), n))
    return [
        value
        if i in chosen
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long
        )
        for i, value in enumerate(values)
    ]


def declared(n: int = 1, sample: int = 0, seed: int = 0) -> tuple[int, int, int]:
    """The arguments of the mark ``long``."""
    return n, sample, seed


def _mark(item: pytest.Item) -> tuple[int, int, int] | None:
    mark = item.get_closest_marker("long")
    return None if mark is None else declared(*mark.args, **mark.kwargs)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers of tests")
    group.addoption("--full", action="store_true", help="long tests too, and all in full")
    group.addoption(
        "--record", type=Path, metavar="FILE", help="long tests alone, in full; results into FILE"
    )
    group.addoption("--shard", default="1/1", metavar="I/N", help="with --record: one part of N")
    group.addoption(
        "--again", action="store_true", help="with --record: also what is on record for this commit"
    )
    group.addoption("--list-long", type=Path, metavar="FILE", help="the long tests, into FILE")


def pytest_configure(config: pytest.Config) -> None:
    file = config.option.record
    if file is None:
        return
    config.option.record = file = config.rootpath / file
    if not ledger.commit(file):
        raise pytest.UsageError("a result on record is that of a commit; run from a git checkout")
    if uncommitted := ledger.changes(file):
        raise pytest.UsageError(
            f"a result on record is that of a commit; commit first, or remove:\n{uncommitted}"
        )


def _full(config: pytest.Config) -> bool:
    return bool(config.option.full or config.option.record or config.option.list_long)


@pytest.hookimpl(
    trylast=True
)  # after the selection by -m and -k, so that shards share what is left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marks = {item: _mark(item) for item in items}
    if config.option.record:
        kept = _on_this_run(config, sorted((i for i in items if marks[i]), key=lambda i: i.nodeid))
    elif _full(config):
        return
    else:
        kept = {item for item in items if marks[item] is None or marks[item][1]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _on_this_run(config: pytest.Config, items: list[pytest.Item]) -> set[pytest.Item]:
    file = config.option.record
    part, parts = map(int, config.option.shard.split("/"))
    if not 1 <= part <= parts:
        raise pytest.UsageError(f"--shard {config.option.shard}: write 1/4 for the first of four")
    mine = items[part - 1 :: parts]
    if config.option.again:
        return set(mine)
    now, known = ledger.commit(file), ledger.read(file)
    return {
        item
        for item in mine
        if item.nodeid not in known or not ledger.same(file, known[item.nodeid]["commit"], now)
    }


@pytest.fixture
def extent(request: pytest.FixtureRequest) -> Extent:
    """How much of a long test to do."""
    mark = _mark(request.node)
    assert mark is not None, "a test that takes its extent is marked long"
    n, sample, seed = mark
    full = _full(request.config)
    found = request.node.stash[_EXTENT] = Extent(n if full else sample, seed, full)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    item.stash[_SECONDS] = item.stash.get(_SECONDS, 0.0) + report.duration
    if report.outcome != "passed" and item.stash.get(_OUTCOME, "passed") != "failed":
        item.stash[_OUTCOME] = report.outcome
    mark = _mark(item)
    if item.config.option.record and mark is not None and report.when == "teardown":
        done = item.stash.get(_EXTENT, Extent(mark[0], mark[2], full=True))
        entry = ledger.Entry(
            commit=ledger.commit(item.config.option.record),
            n=done.n,
            outcome=item.stash.get(_OUTCOME, "passed"),
            seconds=round(item.stash[_SECONDS], 1),
            seed=done.seed,
        )
        ledger.write(item.config.option.record, item.nodeid, entry)
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    file = session.config.option.list_long
    if file is not None:
        found = {item.nodeid: mark for item in session.items if (mark := _mark(item))}
        file.write_text(json.dumps(found), encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.option.record and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # everything is on record
