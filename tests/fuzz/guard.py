"""In the process of a case: nothing is written or asked for outside its folder, and what was is told.

``sitecustomize`` of real processes and forked children install the same hook. It knows only the
standard library, so that nothing of ours is imported before a real process asks for it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

LEFT = 97
"""Exit code of a process that reached outside."""

_PATHS = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "shutil.rmtree": ((0, None),),
}
"""Which arguments of an audited event are paths that change, and the folder each is relative to."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")


def install(folder: str, record: str) -> None:
    """Let this process change nothing outside a folder and reach no server.

    Parameters
    ----------
    folder : str
        Real path of the case's folder.
    record : str
        File that a line is added to for every attempt.
    """
    inside = folder.rstrip("/") + "/"

    def note(what: str, value: str) -> None:
        number = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(number, (json.dumps([what, value]) + "\n").encode())
        os.close(number)

    def check(event: str, path: Any, at: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        if isinstance(at, int) and at >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{at}"), name)  # noqa: PTH115, PTH118
        base, last = os.path.split(os.path.abspath(name))  # noqa: PTH100
        real = os.path.join(os.path.realpath(base), last)  # noqa: PTH118
        if not (real + "/").startswith(inside) and real not in ("/dev/null", "/dev/tty"):
            note("write", f"{event} {real}")
            os._exit(LEFT)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITES and path != record:
                check(event, path, None)
        elif event in _PATHS:
            if event == "os.mkdir" and os.path.isdir(args[0]):  # noqa: PTH112 - makes nothing
                return
            for path, at in _PATHS[event]:
                check(event, args[path], None if at is None else args[at])
        elif event in _PROGRAMS:
            note("program", repr(args[:2])[:300])
        elif event == "socket.connect" and isinstance(args[1], tuple):
            note("network", repr(args[1]))
            raise OSError(101, "Network is unreachable")
        elif event == "socket.getaddrinfo":
            note("network", repr(args[:2]))
            raise OSError(101, "Network is unreachable")

    sys.addaudithook(hook)
