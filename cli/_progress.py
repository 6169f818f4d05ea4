"""Progress of stages, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from refusal_nn._terminal import one_line

Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress() -> Iterator[Report | None]:
    """A reporter for recorders: a bar a stage on a terminal, nothing where stderr is a file."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # not as markup: a server's words are shown, brackets and all
    said = TextColumn("{task.description}", markup=False)
    columns = (said, BarColumn(), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, TimeElapsedColumn(), note, console=Console(stderr=True)) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar a stage; beside the last one, where the jobs on a server are."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._last: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks or done == 0:
            text = one_line(stage.replace("_", " "))
            self._tasks[stage] = self._bars.add_task(text, total=total, note="")
        self._last = self._tasks[stage]
        note = {"note": ""} if done == total else {}
        self._bars.update(self._last, completed=done, **note)

    def status(self, line: str) -> None:
        """Show a line about jobs on a server."""
        if self._last is not None:
            self._bars.update(self._last, note=one_line(line))
