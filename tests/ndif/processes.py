"""Process trees and listening sockets, read from /proc: what belongs to us, and ending it.

Linux only, standard library only: the stack starts before any environment of its own exists.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import signal
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.patience import limit

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LISTEN = "0A"


class Process(NamedTuple):
    """One row of the process table."""

    pid: int
    parent: int
    state: str


class Listener(NamedTuple):
    """A TCP socket that accepts connections."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    pid: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        mapped = getattr(self.address, "ipv4_mapped", None)
        return (mapped or self.address).is_loopback

    def __str__(self) -> str:
        return f"{self.address}:{self.port} of process {self.pid} ({command_line(self.pid)[:80]})"


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (daemons too)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have SIGTERM sent to this process when its parent ends, however that ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def table() -> list[Process]:
    """Every process of the machine, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            found.append(Process(int(entry.name), int(fields[1]), fields[0]))
    return found


def descendants(root: int, *, zombies: bool = False) -> set[int]:
    """Process ids below ``root``, itself not included."""
    rows = table()
    children: dict[int, list[int]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row.pid)
    below: set[int] = set()
    frontier = [root]
    while frontier:
        new = [pid for pid in children.get(frontier.pop(), []) if pid not in below]
        below.update(new)
        frontier.extend(new)
    dead = {row.pid for row in rows if row.state in "ZX"}
    return below if zombies else below - dead


def command_line(pid: int) -> str:
    """The arguments of a process, blank-separated; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def state(pid: int) -> str:
    """The state of a process, one letter (``Z``: ended and not waited for); empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process: with the id, it names one process for ever."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def reap(managed: Iterable[int]) -> None:
    """Collect ended children, except the ``managed`` ones, whose status someone else waits for."""
    kept = set(managed)
    me = os.getpid()
    for row in table():
        if row.parent == me and row.state == "Z" and row.pid not in kept:
            try:
                os.waitpid(row.pid, os.WNOHANG)
            except ChildProcessError:
                continue


def end_descendants(*, grace: float, managed: Iterable[int] = ()) -> set[int]:
    """End everything below this process: SIGTERM, and SIGKILL after ``grace`` seconds.

    Returns
    -------
    set of int
        What is still there a good while after that: nothing, unless the kernel holds a process.
    """
    me = os.getpid()
    awaited = set(managed)
    asked: set[int] = set()
    begin = time.monotonic()
    while True:
        reap(awaited)
        # zombies too: of a process that is ending, the first thread is one before the others end
        left = descendants(me, zombies=True)
        left -= awaited - descendants(me)
        elapsed = time.monotonic() - begin
        if not left or elapsed > grace + limit(10):
            return left
        for pid in left if elapsed > grace else left - asked:
            try:
                os.kill(pid, signal.SIGKILL if elapsed > grace else signal.SIGTERM)
            except ProcessLookupError:
                continue
        asked |= left
        time.sleep(0.05)


def listeners(pids: Iterable[int]) -> list[Listener]:
    """TCP sockets on which any of these processes listens, IPv4 and IPv6."""
    owner = {inode: pid for pid in pids for inode in _socket_inodes(pid)}
    found = set()
    for name in ("tcp", "tcp6"):
        path = Path("/proc/net", name)
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in owner:
                address, port = fields[1].split(":")
                found.add(Listener(_address(address), int(port, 16), owner[fields[9]]))
    return sorted(found, key=lambda listener: listener.port)


def _socket_inodes(pid: int) -> list[str]:
    inodes = []
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # it ended meanwhile
        return []
    for descriptor in descriptors:
        try:
            link = str(descriptor.readlink())
        except OSError:  # closed meanwhile
            continue
        if link.startswith("socket:["):
            inodes.append(link[8:-1])
    return inodes


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel prints each 32-bit word of an address in the machine's byte order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return ipaddress.ip_address(packed)
