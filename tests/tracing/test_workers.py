"""The processes behind dry runs and preflights: one for a key, and nothing left of one that ended."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import refusal_nn as rn
from refusal_nn.backends import _process
from refusal_nn.backends._process import Worker, worker_of
from refusal_nn.errors import BackendError


@pytest.fixture(scope="module")
def model():
    return rn.load_model("tiny-refuser")


@pytest.fixture
def readers(monkeypatch) -> Iterator[dict[object, Worker]]:
    """The shared processes of this test alone."""
    found: dict[object, Worker] = {}
    monkeypatch.setattr(_process, "_readers", found)
    yield found
    for worker in found.values():
        worker.close()


def test_threads_that_want_one_process_at_a_time_get_one(model, readers, monkeypatch) -> None:
    began: list[Worker] = []
    start = Worker.__init__

    def slowly(self: Worker, *args: object, **options: bool) -> None:
        began.append(self)
        time.sleep(0.2)  # for the others to look whether there is one
        start(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "__init__", slowly)
    together = threading.Barrier(4)

    def ask(_: int) -> Worker:
        together.wait()
        return worker_of(model, weights=False)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert found == began * 4


def test_nothing_is_left_of_a_process_that_ended(model, readers) -> None:
    first = worker_of(model, weights=False)
    first.process.kill()
    first.process.wait()
    second = worker_of(model, weights=False)
    assert second is not first
    assert second.process.poll() is None
    assert list(readers.values()) == [second]
    assert first.process.stdin.closed
    assert first.process.stdout.closed
    with pytest.raises(BackendError, match="ended with exit code -9 during a job"):
        first.ask(b"")  # of who got it just before it ended
    left = weakref.ref(first)
    del first
    gc.collect()
    assert left() is None
