"""SIGTERM ends a command as Ctrl-C does: the work stops where it is, and what is whole is kept."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_got: list[int] = []


class Terminated(KeyboardInterrupt):
    """The process was asked to end; whatever makes room for Ctrl-C makes room for it."""


def install() -> None:
    """Turn the first SIGTERM into :class:`Terminated`; a second signal of either kind ends at once.

    For a process that is the command line's own: nothing of the library calls it.
    """
    for number in _SIGNALS:
        # a signal that whoever started us had ignored (nohup, a shell's `&`) stays so
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def terminated() -> bool:
    """Whether SIGTERM has come, even if a library turned the exception into one of its own."""
    return signal.SIGTERM in _got


def _end(number: int, frame: FrameType | None) -> None:
    _got.append(number)
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
