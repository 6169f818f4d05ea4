"""The directory of a run that is being made: how it comes to be, and what it remembers."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal_nn._files import MAX_BYTES
from refusal_nn.errors import StoreError
from refusal_nn.store import _lock
from refusal_nn.store._disk import write_atomically
from refusal_nn.store._inspect import NODE_BYTES, inspect, own_json, refusal
from refusal_nn.store._names import run_name
from refusal_nn.store.manifest import locate

REQUEST = "call.json"
_OLD_REQUEST = "request.json"
ATTEMPTS = "attempts.json"


def create(
    partial: Path, attrs: Mapping[str, Any], request: Mapping[str, Any]
) -> _lock.Lock | None:
    """Make a partial directory whole and locked, then give it its name in one step.

    Returns
    -------
    Lock or None
        Held; None when another process made the directory first.
    """
    node = {"attributes": dict(attrs), "zarr_format": 3, "node_type": "group"}
    # the root's metadata become twice as many: those of its variables are added
    files = {"zarr.json": _as_file(partial, "zarr.json", node, NODE_BYTES // 2, "record less")}
    if request:
        files[REQUEST] = _as_file(partial, REQUEST, request, MAX_BYTES, "use fewer prompts")
    draft = partial.with_name(f".{partial.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        for name, content in files.items():
            (draft / name).write_bytes(content)
        begin_attempt(draft, None)
        lock = _lock.Lock(draft)
        lock.acquire()
        draft.rename(partial)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if partial.is_dir():
            return None
        raise
    lock.path = partial / _lock.NAME
    return lock


def sweep(partial: Path) -> None:
    """Remove drafts left by processes that died while making this partial directory."""
    for draft in partial.parent.glob(f".{glob.escape(partial.name)}-*"):
        pid = draft.name.rpartition("-")[2]
        if pid.isascii() and pid.isdecimal() and len(pid) < 10 and not _alive(int(pid)):
            shutil.rmtree(draft, ignore_errors=True)


def discard(partial: Path) -> None:
    """Remove the scratch of a run that was killed just after it was renamed into place."""
    if not partial.is_dir() or partial.is_symlink():
        return
    lock = _lock.Lock(partial)
    try:
        lock.acquire()
    except (StoreError, OSError):
        return  # its writer is alive and removes it itself
    shutil.rmtree(partial, ignore_errors=True)
    lock.release()


def last_sign_of_life(partial: Path) -> float | None:
    """When the latest attempt last wrote, seconds since the epoch."""
    try:
        return (partial / _lock.NAME).stat().st_mtime
    except OSError:
        return None


def begin_attempt(partial: Path, previous_ended: float | None) -> None:
    """Note that work begins or goes on, and time the attempt before by its last sign of life."""
    attempts = _attempts(partial)
    if attempts and attempts[-1]["seconds"] is None and previous_ended is not None:
        attempts[-1]["seconds"] = max(0.0, previous_ended - attempts[-1]["started"])
    attempts.append({"started": time.time(), "seconds": None})
    write_atomically(partial / ATTEMPTS, json.dumps(attempts).encode())


def spent(partial: Path, running: float) -> tuple[int, float]:
    """Attempts so far and seconds spent in all, the running attempt's included."""
    before = _attempts(partial)[:-1]
    return len(before) + 1, sum(a["seconds"] or 0.0 for a in before) + running


def request_of(path: str | Path) -> dict[str, Any]:
    """What a run was asked to do, so that it can be asked again.

    Parameters
    ----------
    path : str or Path
        A run, complete or partial, with or without its endings.

    Returns
    -------
    dict
        As given to :class:`refusal_nn.store.RunRecorder`; empty where the run does not say.

    Raises
    ------
    StoreError
        If there is no such run, or what it says cannot be read.
    """
    folder = locate(path)
    inspect(folder)
    if not (folder / REQUEST).exists():
        return {}
    try:
        request = own_json(folder / REQUEST, limit=MAX_BYTES)
    except StoreError as e:
        raise StoreError(refusal(run_name(folder), str(e).rstrip("."))) from e
    if not isinstance(request, dict):
        raise StoreError(refusal(run_name(folder), f"{REQUEST} is not an object"))
    return request


def typed_before(partial: Path) -> list[str]:
    """The words that began a partial run of a version that recorded them; empty for others."""
    try:
        argv = own_json(partial / _OLD_REQUEST)["argv"]
    except (StoreError, KeyError, TypeError):
        return []
    return argv if isinstance(argv, list) and all(isinstance(word, str) for word in argv) else []


def _as_file(partial: Path, name: str, value: Any, most: int, fix: str) -> bytes:
    """JSON that is not larger than what is read again."""
    content = (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    if len(content) > most:
        raise StoreError(
            f"run {run_name(partial)!r} cannot be begun: its {name} would have {len(content):,} bytes, "
            f"and {most:,} are the most that are read again; {fix}."
        )
    return content


def _attempts(partial: Path) -> list[dict[str, Any]]:
    path = partial / ATTEMPTS
    if not os.path.lexists(path):
        return []
    found = own_json(path, of=run_name(partial))
    if not isinstance(found, list) or not all(map(_is_attempt, found)):
        raise StoreError(
            f"run {run_name(partial)!r} cannot go on: its {ATTEMPTS} does not hold attempts; remove "
            "the run and begin again."
        )
    return found


def _is_attempt(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"started", "seconds"}
        and _is_time(value["started"])
        and (value["seconds"] is None or _is_time(value["seconds"]))
    )


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as e:
        return not isinstance(e, ProcessLookupError)  # one of another user is alive, too
    return True
