"""How long a test waits. The limits hold on a machine many times slower than the one they were set on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

FACTOR = float(os.environ.get("REFUSAL_NN_TEST_PATIENCE", "10"))
_LOOP_SECONDS = 0.05  # of processor time, on the machine on which limits of processor time were set


def limit(seconds: float) -> float:
    """What to allow for something that takes up to so many seconds on a fast machine."""
    return FACTOR * seconds


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where the block takes longer than ``limit(seconds)``, also while it waits for a pipe."""

    def late(*_: object) -> None:
        raise AssertionError(f"still busy after {limit(seconds):.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit(seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wait_for(
    condition: Callable[[], T],
    what: object = "a condition",
    seconds: float = 60,
    *,
    every: float = 0.02,
) -> T:
    """Ask until the answer is true; returns it, and fails after ``limit(seconds)``.

    ``what`` is waited for, in the words of the failure; called for them if it can be called.
    """
    end = time.monotonic() + limit(seconds)
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(
                f"waited {limit(seconds):.0f} s for {what() if callable(what) else what}"
            )
        time.sleep(every)
    return found


def slowness() -> float:
    """How many times slower than the first this machine is at plain Python, at least 1."""

    def once() -> float:
        begun = time.process_time()
        sum(i * i for i in range(1_000_000))
        return time.process_time() - begun

    return max(1.0, min(once() for _ in range(3)) / _LOOP_SECONDS)
