"""The jobs of a stage: what was submitted where, so that nothing is computed twice.

A batch whose job was submitted but whose result is not on disk yet is *pending*. The ledger is
written before anyone waits for the job, so a process that dies while waiting leaves the job's id
behind and the next one collects its result instead of asking again.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from refusal_nn.errors import StoreError
from refusal_nn.store._disk import write_atomically
from refusal_nn.store._inspect import inspect, own_json
from refusal_nn.store._lock import Lock
from refusal_nn.store._names import run_name

if TYPE_CHECKING:
    import xarray as xr

JOBS = "jobs.json"

_FACTS = {"id": str, "state": str, "batches": list}
_STATES = ("submitted", "done", "failed", "lost", "gone")
_ID = re.compile(r"[\w.:@+-]{1,200}")
"""A job's id goes into the address that its result is asked for at."""


@dataclass
class JobLedger:
    """Jobs of one stage, in the order they were submitted.

    Parameters
    ----------
    file : Path, optional
        Where the ledger is kept; in memory alone when None.

    Attributes
    ----------
    jobs : list of dict
        ``id``, ``batches``, ``state`` (``submitted``, ``done``, ``failed``: by the server, ``lost``:
        nothing was heard of it, ``gone``: its result was not kept), ``submitted`` (seconds since the
        epoch) and whatever the backend noted (bytes ``sent`` and ``received``, ``host``, ``reason``).
    """

    file: Path | None = None
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file is not None and os.path.lexists(self.file):
            run = run_name(self.file.parent)
            found = own_json(self.file, of=run)
            if not isinstance(found, list) or not all(map(_is_job, found)):
                raise StoreError(
                    f"run {run!r} cannot go on: {self.file.name} does not hold the jobs of a stage; "
                    "remove the run and begin again."
                )
            self.jobs = found

    def submitted(self, job: str, batches: Sequence[int], **facts: Any) -> None:
        """Note a job before waiting for it."""
        entry = {"id": job, "batches": [int(b) for b in batches], "state": "submitted"}
        self.jobs.append({**entry, "submitted": time.time(), **facts})
        self._write()

    def ended(self, job: str, state: str, **facts: Any) -> None:
        """Note that a job is ``done`` (its batches are written), ``failed``, ``lost`` or ``gone``."""
        self.note(job, state=state, **facts)

    def note(self, job: str, **facts: Any) -> None:
        """Keep further facts about a job."""
        for entry in self.jobs:
            if entry["id"] == job:
                entry.update(facts)
        self._write()

    def _write(self) -> None:
        if self.file is not None:
            write_atomically(self.file, json.dumps(self.jobs).encode())


def job_ledgers(partial: Path) -> dict[str, JobLedger]:
    """The ledgers of a partial run, by stage.

    Raises
    ------
    StoreError
        If one does not hold jobs, or something in the run is none of a run's.
    """
    if Path(partial).is_dir():
        inspect(Path(partial))
    files = sorted(Path(partial).glob(f"*.{JOBS}"))
    return {file.name.removesuffix(f".{JOBS}"): JobLedger(file) for file in files}


def has_jobs(partial: Path) -> bool:
    """Whether a partial run has jobs that a server may still answer, or whose batches it holds."""
    return any(
        entry["state"] in ("submitted", "done")
        for ledger in job_ledgers(partial).values()
        for entry in ledger.jobs
    )


def forget_jobs(partial: Path) -> int:
    """Count the jobs nobody collected as lost, so that their batches are computed again.

    Returns
    -------
    int
        Number of jobs given up.

    Raises
    ------
    StoreError
        If another process is at work on the run.
    """
    lock = Lock(partial)
    alive = lock.path.stat().st_mtime if lock.path.exists() else None
    lock.acquire()
    try:
        given_up = 0
        for ledger in job_ledgers(partial).values():
            for job in [e["id"] for e in ledger.jobs if e["state"] == "submitted"]:
                ledger.ended(job, "lost", reason="given up by hand")
                given_up += 1
        return given_up
    finally:
        lock.release()
        if alive is not None:  # this was no attempt: the file tells when the last one ended
            os.utime(lock.path, (alive, alive))


def jobs_summary(partial: Path) -> dict[str, Any]:
    """What a run's jobs came to, for its provenance; empty where it had none.

    Returns
    -------
    dict
        ``submitted`` and of those ``repeated`` (a count of jobs each), ``bytes_sent``,
        ``bytes_received`` and ``ids``.
    """
    jobs = [entry for ledger in job_ledgers(partial).values() for entry in ledger.jobs]
    if not jobs:
        return {}
    return {
        "submitted": len(jobs),
        "repeated": sum(entry["state"] != "done" for entry in jobs),
        "bytes_sent": sum(entry.get("sent", 0) for entry in jobs),
        "bytes_received": sum(entry.get("received", 0) for entry in jobs),
        "ids": [entry["id"] for entry in sorted(jobs, key=lambda entry: entry["submitted"])],
    }


def _is_job(value: Any) -> bool:
    """Whether it is what :meth:`JobLedger.submitted` notes, and facts that a backend adds."""
    return (
        isinstance(value, dict)
        and all(type(value.get(key)) is kind for key, kind in _FACTS.items())
        and type(value.get("submitted")) in (int, float)
        and 0 <= value["submitted"] < 1 << 40
        and value["state"] in _STATES
        and all(type(b) is int and 0 <= b < 1 << 40 for b in value["batches"])
        and all(type(value.get(key, 0)) is int for key in ("sent", "received"))
        and all(type(value.get(key, "")) is str for key in ("host", "reason"))
        and _ID.fullmatch(value["id"]) is not None
    )


@runtime_checkable
class Streaming(Protocol):
    """Work whose batches are done several at a time, in whatever order."""

    def stream(self, indices: Sequence[int], ledger: JobLedger) -> Iterator[tuple[int, xr.Dataset]]:
        """Yield ``(batch, its region)`` once for each of ``indices``."""
        ...


def results_of(
    compute: Callable[[int], xr.Dataset] | Streaming, indices: Sequence[int], ledger: JobLedger
) -> Iterator[tuple[int, xr.Dataset]]:
    """The results of the batches that are missing, as they come."""
    if isinstance(compute, Streaming):
        yield from compute.stream(indices, ledger)
    else:
        for i in indices:
            yield i, compute(i)
