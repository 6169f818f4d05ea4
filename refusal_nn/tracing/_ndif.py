"""Backend ``ndif``: jobs under way on a server, several at a time, none of them twice.

A job is submitted without waiting, its id goes into the stage's ledger, and then the server is asked
about it until the result is there. A process that dies meanwhile leaves the ledger behind, and the
next one asks for the results of what was submitted before it submits anything.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from refusal_nn.errors import BackendError, Detached, RequestError, UnavailableError
from refusal_nn.models import Model
from refusal_nn.models._service import Answer
from refusal_nn.tracing._backends import Request, Results
from refusal_nn.tracing._ndif_errors import failure_of
from refusal_nn.tracing._ndif_job import Block, Job, Passes, Work

if TYPE_CHECKING:
    from refusal_nn.store import JobLedger

T = TypeVar("T")
SLOWEST_POLL = 20
"""The pause between questions grows to this many times the first one."""


@dataclass
class UnderWay:
    """A job that was submitted and not collected."""

    id: str
    job: Job
    attempt: int = 1
    inherited: bool = False
    doubtful: bool = False
    status: str = "SUBMITTED"


class Jobs:
    """The jobs of one stage.

    Parameters
    ----------
    model : Model
    work : Work
        What the jobs are made of.
    ledger : JobLedger
    """

    def __init__(self, model: Model, work: Work, ledger: JobLedger) -> None:
        assert model.remote is not None
        self.model = model
        self.link = model.remote
        self.work = work
        self.ledger = ledger
        self.under_way: list[UnderWay] = []
        self.wanted: set[int] = set()
        self.news = time.monotonic()
        self.told = ""

    def answers(self, indices: Sequence[int], *, detach: bool) -> Iterator[tuple[int, Any]]:
        """Yield ``(batch, its answer)`` once for each of ``indices``, as they come.

        Raises
        ------
        Detached
            If ``detach`` and not all answers are there yet; what is missing has been submitted.
        BackendError
            If a job fails, or there is no news of any within the deadline.
        """
        self.wanted = set(indices)
        todo = self._inherit()
        yield from self._collect(todo)
        source = self.work.jobs(sorted(todo))
        upcoming = next(source, None)
        while self.under_way or upcoming is not None:
            while upcoming is not None and (detach or self._room()):
                self._submit(upcoming)
                upcoming = next(source, None)
            lost: set[int] = set()
            yield from self._collect(lost)
            if lost:
                again = self.work.jobs(sorted(lost))
                source = itertools.chain(source, again)
                upcoming = upcoming or next(source, None)
            if self.under_way and not (upcoming is not None and (detach or self._room())):
                if detach:
                    raise Detached(self._host, {work.id: work.status for work in self.under_way})
                self._pause()

    def _room(self) -> bool:
        return len(self.under_way) < self.link.limits.in_flight

    def _inherit(self) -> set[int]:
        """Take up what an earlier process submitted; the batches nobody was asked for."""
        todo = set(self.wanted)
        for entry in reversed(self.ledger.jobs):
            batches = tuple(entry["batches"])
            if entry["state"] not in ("submitted", "done") or not todo & set(batches):
                continue
            if entry["host"] != self._host:
                if entry["state"] == "done":
                    continue
                raise RequestError(
                    f"this run left job {entry['id']} at {entry['host']}, not at {self._host}; pass "
                    "that address in --host or NDIF_HOST, or remove the run and begin again."
                )
            todo -= set(batches)
            job = self.work.job(batches)
            doubtful = bool(entry.get("silent"))
            self.under_way.append(UnderWay(entry["id"], job, inherited=True, doubtful=doubtful))
        return todo

    def _submit(self, job: Job, attempt: int = 1) -> None:
        blob = self.work.blob(job)
        service, network = self.link.service, self.model.nnsight
        env = network._remoteable_get_env()
        name = self._patiently(lambda: service.submit(blob, self.link.key, env, True))
        self.ledger.submitted(name, job.batches, host=self._host, sent=len(blob))
        self.under_way.append(UnderWay(name, job, attempt))
        self.news = time.monotonic()
        self._tell()

    def _collect(self, lost: set[int]) -> Iterator[tuple[int, Any]]:
        """One round of questions: yield what is done, submit again what failed for now.

        Batches of inherited jobs that the server lost are added to ``lost``.
        """
        service = self.link.service
        for work in list(self.under_way):
            answer = self._patiently(lambda: service.ask(work.id))  # noqa: B023 - called at once
            if answer is not None and answer.status != work.status:
                work.status, self.news = answer.status, time.monotonic()
                self._tell()
            if answer is None or answer.state == "running":
                if work.doubtful or (work.inherited and self._silent()):
                    self.under_way.remove(work)
                    self._give_up(work, "lost", lost)
                continue
            self.under_way.remove(work)
            if answer.state == "failed":
                self._failed(work, answer, lost)
            else:
                yield from self._finish(work, answer, lost)

    def _finish(self, work: UnderWay, answer: Answer, lost: set[int]) -> Iterator[tuple[int, Any]]:
        service, before = self.link.service, self.link.service.received
        try:
            content = self._patiently(lambda: service.download(answer.url))
        except UnavailableError:
            raise
        except BackendError:  # a server keeps results for an hour or so
            self._give_up(work, "gone", lost)
            return
        self.news = time.monotonic()
        answers = self.work.answers(work.job, content)
        for batch, found in zip(work.job.batches, answers, strict=True):
            if batch in self.wanted:
                self.wanted.discard(batch)
                yield batch, found
        # after the last result is written: until then the job is asked for again
        self.ledger.ended(work.id, "done", received=service.received - before)

    def _failed(self, work: UnderWay, answer: Answer, lost: set[int]) -> None:
        """Raise, or send the batches again where that may help."""
        error = failure_of(self.link, answer.message)
        self.ledger.ended(work.id, "failed", reason=str(error))
        if work.inherited:  # judge it by an attempt of our own
            lost.update(b for b in work.job.batches if b in self.wanted)
            return
        if not isinstance(error, UnavailableError) or work.attempt > self.link.limits.retries:
            raise error
        self.link.retried += 1
        time.sleep(self.link.limits.backoff * 2 ** (work.attempt - 1))
        self._submit(work.job, work.attempt + 1)

    def _give_up(self, work: UnderWay, state: str, lost: set[int]) -> None:
        self.ledger.ended(work.id, state)
        lost.update(b for b in work.job.batches if b in self.wanted)
        self.news = time.monotonic()

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something that may fail for now, with growing pauses in between."""
        limits = self.link.limits
        for attempt in range(limits.retries + 1):
            try:
                return action()
            except UnavailableError as error:
                if attempt == limits.retries or self._silent():
                    raise self._kept(error) from error
                self._tell(f"retrying: {error}")
                self.link.retried += 1
                time.sleep(limits.backoff * 2**attempt)
        raise AssertionError("unreachable")

    def _pause(self) -> None:
        """Wait before the next round of questions.

        Raises
        ------
        BackendError
            If there was no news for too long.
        """
        limits = self.link.limits
        quiet = time.monotonic() - self.news
        own = [work for work in self.under_way if not work.inherited]
        if self._silent() and own:
            for work in own:  # the next attempt asks once and then sends these again
                self.ledger.note(work.id, silent=True)
            raise BackendError(
                f"no news of {_count(self.under_way)} at {self._host} for {_span(quiet)} (last state: "
                f"{', '.join(sorted({w.status for w in self.under_way}))}); the run is kept: look at "
                "the server with `refusal-nn remote status`, then continue with `refusal-nn runs "
                "resume`."
            )
        self._tell()
        pause = min(limits.poll * (1 + quiet / 2), limits.poll * SLOWEST_POLL)
        time.sleep(min(pause, max(0.01, limits.deadline - quiet)))

    def _silent(self) -> bool:
        return time.monotonic() - self.news > self.link.limits.deadline

    def _kept(self, error: UnavailableError) -> UnavailableError:
        kept = "; what is done is kept: continue with `refusal-nn runs resume`"
        if not self.under_way or self.ledger.file is None:
            return error
        return UnavailableError(f"{str(error).rstrip('.')}{kept}.")

    @property
    def _host(self) -> str:
        return self.link.service.host

    def _tell(self, more: str = "") -> None:
        if self.link.notify is None:
            return
        counts: dict[str, int] = {}
        for work in self.under_way:
            counts[work.status.lower()] = counts.get(work.status.lower(), 0) + 1
        states = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        line = "; ".join(part for part in (f"{self._host}: {states or 'no jobs'}", more) if part)
        if line != self.told:
            self.told = line
            self.link.notify(line)


def send(model: Model, block: bytes) -> bytes:
    """Run one serialised block and wait; the bytes of what it saved."""
    return _one(model, Block(block))  # type: ignore[no-any-return]


def execute(model: Model, requests: Sequence[Request]) -> Results:
    """Run requests as one job and wait for it."""
    return _one(model, Passes(model, lambda _: requests))  # type: ignore[no-any-return]


def _one(model: Model, work: Work) -> Any:
    from refusal_nn.store import JobLedger

    ((_, answer),) = Jobs(model, work, JobLedger()).answers([0], detach=False)
    return answer


def stream(
    model: Model,
    indices: Sequence[int],
    requests: Callable[[int], Sequence[Request]],
    shared: Sequence[Request],
    ledger: JobLedger,
) -> Iterator[tuple[int, Results]]:
    """Results of the batches of a stage, as they come."""
    assert model.remote is not None
    jobs = Jobs(model, Passes(model, requests, shared), ledger)
    yield from jobs.answers(indices, detach=model.remote.detach)


def _count(jobs: Sequence[Any]) -> str:
    return "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
