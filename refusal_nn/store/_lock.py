"""One writer a run: a lock file in the partial directory, held with flock."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from pathlib import Path

from refusal_nn.errors import StoreError
from refusal_nn.store._names import run_name

NAME = "lock"


class Lock:
    """Exclusive right to write a partial run.

    The kernel drops a flock when its process dies, so a killed run never leaves a stale lock on
    this host. Another host's flock may be invisible on a shared disk, so its name in the file is
    respected until a person removes the file.

    Parameters
    ----------
    folder : Path
        The partial directory; must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def usable(self) -> bool:
        """Whether it can be written: it is not there yet, or a plain file of no other name."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return True
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        StoreError
            If a live process, or a process on another host, holds it, or what is there is not a file
            that a run may write.
        FileNotFoundError
            If the folder has gone.
        """
        while self._fd is None:
            if not self.usable():
                raise StoreError(
                    f"run {run_name(self.path.parent)!r} cannot be written: its {NAME!r} is a link or "
                    "no plain file; remove the run."
                )
            # not through a link: what is written here could be another file's end
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            try:
                if self._taken(fd):
                    self._fd = fd
            finally:
                if self._fd is None:
                    os.close(fd)

    def touch(self) -> None:
        """Record that the run is alive: the file's time tells when a killed attempt ended."""
        if self._fd is not None:
            os.utime(self._fd)

    def release(self) -> None:
        """Give the lock up; harmless when it is not held."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        fd = getattr(self, "_fd", None)
        if fd is not None:
            os.close(fd)

    def _taken(self, fd: int) -> bool:
        """Whether the open file is locked now, and still the run's."""
        name = run_name(self.path.parent)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise StoreError(
                f"run {name!r} is being written by {_owner(_content(fd))}; wait for it to end, or "
                "stop it and resume."
            ) from e
        try:
            if not os.path.samestat(os.fstat(fd), self.path.stat()):
                return False
        except FileNotFoundError:
            return False  # the run was committed and its folder removed since it was opened
        here, found = {"pid": os.getpid(), "host": socket.gethostname()}, _content(fd)
        if found.get("host") not in (None, here["host"]):
            raise StoreError(
                f"run {name!r} is marked as being written by {_owner(found)}; if that process has "
                f"ended, delete the file {str(self.path)!r} and resume."
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(here).encode(), 0)
        return True


def _content(fd: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _owner(content: dict[str, object]) -> str:
    pid, host = content.get("pid", "?"), content.get("host", "this machine")
    return f"process {str(pid)[:20]} on {str(host)[:80]}"
