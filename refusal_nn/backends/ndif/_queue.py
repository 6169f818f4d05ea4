"""Backend ``ndif``: jobs under way on a server, several at a time, none of them twice.

A job is submitted without waiting, its id goes into the stage's ledger, and then the server is asked
about it until the result is there. A process that dies meanwhile leaves the ledger behind, and the
next one asks for the results of what was submitted before it submits anything.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from refusal_nn.backends._payload import Batches, Job
from refusal_nn.backends.ndif._errors import TooMuchError, failure_of
from refusal_nn.backends.ndif._service import Answer, TooLargeError, UnansweredError
from refusal_nn.errors import (
    BackendError,
    Detached,
    RefusalNNError,
    RequestError,
    UnavailableError,
)

if TYPE_CHECKING:
    from refusal_nn.backends.ndif._backend import Ndif
    from refusal_nn.models import Model
    from refusal_nn.store import JobLedger

T = TypeVar("T")
SLOWEST_POLL = 20
"""The pause between questions grows to this many times the first one."""
LONGEST_PAUSE = 30.0
"""Seconds between two repetitions of a request that fails for now, at most."""


@dataclass
class UnderWay:
    """A job that was submitted and not collected.

    Attributes
    ----------
    inherited : bool
        Submitted by an earlier process.
    last : list of str or None
        Status and message it had when an earlier process heard nothing more of it; None if none
        gave it up.
    heard : list of str
        Status and message that it has.
    """

    id: str
    job: Job
    attempt: int = 1
    inherited: bool = False
    last: list[str] | None = None
    heard: list[str] = field(default_factory=lambda: ["SUBMITTED", ""])

    def stuck(self, answer: Answer | None) -> bool:
        """Whether a job that an earlier process waited for in vain is still as that process left it.

        One that runs may take long: it is waited for once more.
        """
        if self.last is None or answer is None:
            return self.last is not None
        if [answer.status, answer.message] != self.last or answer.status == "RUNNING":
            self.last = None
        return self.last is not None


class Jobs:
    """The jobs of one stage.

    Parameters
    ----------
    model : Model
    work : Batches
        What the jobs are made of.
    ledger : JobLedger
    """

    def __init__(self, model: Model, work: Batches, ledger: JobLedger) -> None:
        self.model = model
        self.backend = cast("Ndif", model.backend)
        self.work = work
        self.ledger = ledger
        self.under_way: list[UnderWay] = []
        self.wanted: set[int] = set()
        self.lost: set[int] = set()  # batches that are in no job any more
        self.again: list[tuple[Job, int]] = []  # jobs that failed, and which attempt is the next
        self.unread: set[int] = set()  # batches of which a result was there and of no use
        self.most: int | None = None  # batches a job, after one was too large
        self.not_before = 0.0
        self.refused = 0
        self.sealed: tuple[Job, bytes] | None = None
        self.news = time.monotonic()
        self.told = ""

    def answers(self, indices: Sequence[int], *, detach: bool) -> Iterator[tuple[int, Any]]:
        """Yield ``(batch, its answer)`` once for each of ``indices``, as they come.

        Raises
        ------
        Detached
            If ``detach`` and not all answers are there yet; what is missing has been submitted.
        RequestError
            If ``detach`` where no ledger is kept, or jobs were left at another server.
        BackendError
            If a job fails, or there is no news of any within the deadline.
        """
        if detach and self.ledger.file is None:
            raise RequestError(
                "detach needs a run to come back to, and this call keeps none: its jobs could not be "
                "collected; pass detach=False, or keep the work as a run."
            )
        self.wanted = set(indices)
        self.lost = self._inherit()
        source: Iterator[Job] = iter(())
        upcoming, free = None, True
        while True:
            yield from self._collect()
            if self.lost:
                source = itertools.chain(source, self.work.jobs(sorted(self.lost)))
                self.lost = set()
            upcoming = upcoming or self._next(source)
            if upcoming is None and not self.under_way:
                return
            if upcoming is None or not free or not (detach or self._room()):
                if detach and upcoming is None:
                    raise Detached(self._host, {work.id: work.heard[0] for work in self.under_way})
                self._pause()
            free = True
            while upcoming is not None and free and (detach or self._room()):
                free = self._submit(*upcoming)
                upcoming = self._next(source) if free else upcoming

    def _next(self, source: Iterator[Job]) -> tuple[Job, int] | None:
        """The next job to submit and which attempt it is; those that failed come first."""
        if self.again:
            return self.again.pop(0)
        job = next(source, None)
        return None if job is None else (job, 1)

    def _cut(self, batches: Sequence[int]) -> None:
        """Make batches into jobs of as many as may pass."""
        most = self.most or 1
        parts = [batches[i : i + most] for i in range(0, len(batches), most)]
        self.again += [(self.work.job(part), 1) for part in parts]

    def _smaller(self, job: Job) -> bool:
        """Send the halves of a job that was too large; False where it is one batch."""
        if len(job.batches) < 2:
            return False
        half = (len(job.batches) + 1) // 2
        self.most = half if self.most is None else min(self.most, half)
        self.backend.retried += 1
        self._cut([b for b in job.batches if b in self.wanted])
        return True

    def _room(self) -> bool:
        return len(self.under_way) < self.backend.limits.in_flight

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
                    "that address in --host or NDIF_HOST, or, if that server is no more, give its "
                    "jobs up with `refusal-nn runs resume RUN --host URL --forget-jobs`."
                )
            todo -= set(batches)
            job = self.work.job(batches)
            last = entry.get("last", ["", ""]) if entry.get("silent") else None
            self.under_way.append(UnderWay(entry["id"], job, inherited=True, last=last))
        return todo

    def _submit(self, job: Job, attempt: int) -> bool:
        """Send a job, or cut it where it is known to be too large; False if none is taken for now.

        Raises
        ------
        UnavailableError
            If it took none until the deadline, or may have taken this one without saying so.
        """
        if self.most is not None and len(job.batches) > self.most:
            self._cut(job.batches)
            return True
        if time.monotonic() < self.not_before and not self._silent():
            return False
        if self.sealed is None or self.sealed[0] is not job:
            self.sealed = (job, self.work.blob(job))
        blob, service = self.sealed[1], self.backend.service
        env = self.model.nnsight._remoteable_get_env()
        try:
            name = self._in_time(partial(service.submit, blob, self.backend.key, env, True))
        except UnansweredError as error:
            said = str(error).partition("; ")[0].rstrip(".")
            raise self._kept(
                UnavailableError(
                    f"{said}, after a job was sent that it may have taken all the same, so it is not "
                    "sent twice."
                )
            ) from error
        except TooLargeError:
            self.sealed = None
            if not self._smaller(job):
                raise
            return True
        except UnavailableError as error:
            self._bear(error)
            self.not_before = time.monotonic() + self._backoff(self.refused)
            self.refused += 1
            return False
        self.sealed, self.refused = None, 0
        self.ledger.submitted(name, job.batches, host=self._host, sent=len(blob))
        self.under_way.append(UnderWay(name, job, attempt))
        self.news = time.monotonic()
        self._tell()
        return True

    def _collect(self) -> Iterator[tuple[int, Any]]:
        """One round of questions: yield what is done, submit again what failed for now."""
        for work in list(self.under_way):
            answer = self._patiently(partial(self.backend.service.ask, work.id))
            # a place in the queue is told in the message
            if answer is not None and [answer.status, answer.message] != work.heard:
                work.heard = [answer.status, answer.message]
                self.news = time.monotonic()
                self._tell()
            if answer is not None and answer.state != "running":
                self.under_way.remove(work)
                if answer.state == "failed":
                    self._failed(work, answer)
                else:
                    yield from self._finish(work, answer)
            elif work.stuck(answer) or (work.inherited and self._silent()):
                self.under_way.remove(work)
                self._give_up(work, "lost")

    def _finish(self, work: UnderWay, answer: Answer) -> Iterator[tuple[int, Any]]:
        service, before = self.backend.service, self.backend.service.received
        batches = work.job.batches
        try:
            content = self._patiently(partial(service.download, answer.url))
        except UnavailableError:
            raise
        except BackendError as error:  # a server keeps results for an hour or so
            if not work.inherited:  # it stays submitted: the next attempt asks for it once more
                raise BackendError(
                    f"job {work.id} is done, but the object store of {self._host} does not give its "
                    f"result out: {error} Check that store's address, clock and permissions."
                    f"{self._way_back()}"
                ) from error
            self._give_up(work, "gone")
            return
        self.news = time.monotonic()
        try:
            answers = self.work.answers(work.job, content)
            if len(answers) != len(batches):
                raise ValueError(f"{len(answers)} answers for {len(batches)} batches")
        except RefusalNNError as error:  # the model there is not the one that is meant
            for other in [work, *(w for w in self.under_way if not w.inherited)]:
                self.ledger.ended(other.id, "failed", reason=str(error))
            raise
        except Exception as error:  # bytes that are no result may break anything that reads them
            again = self.unread & set(batches)
            self._give_up(work, "gone")
            if again:
                raise BackendError(
                    f"the result of job {work.id} at {self._host} cannot be read, nor could the one "
                    f"before it ({type(error).__name__}); check what lies between here and its object "
                    f"store, and the versions with `refusal-nn remote status`.{self._way_back()}"
                ) from error
            self.unread |= set(batches)
            return
        for batch, found in zip(batches, answers, strict=True):
            if batch in self.wanted:
                self.wanted.discard(batch)
                yield batch, found
        self.news = time.monotonic()  # what the caller did meanwhile was not the server's silence
        # after the last result is written: until then the job is asked for again
        self.ledger.ended(work.id, "done", received=service.received - before)

    def _failed(self, work: UnderWay, answer: Answer) -> None:
        """Raise, or send the batches again where that may help."""
        error = failure_of(self.backend, answer.message)
        self.ledger.ended(work.id, "failed", reason=str(error))
        if isinstance(error, TooMuchError) and self._smaller(work.job):
            return
        if work.inherited:  # judge it by an attempt of our own
            self.lost |= self.wanted.intersection(work.job.batches)
            return
        if not isinstance(error, UnavailableError) or work.attempt > self.backend.limits.retries:
            raise error
        self.backend.retried += 1
        self.not_before = time.monotonic() + self._backoff(work.attempt - 1)
        self.again.append((work.job, work.attempt + 1))

    def _give_up(self, work: UnderWay, state: str) -> None:
        self.ledger.ended(work.id, state)
        self.lost |= self.wanted.intersection(work.job.batches)
        self.news = time.monotonic()

    def _patiently(self, action: Callable[[], T]) -> T:
        """Ask something that may fail for now, with growing pauses, until the deadline."""
        for attempt in itertools.count():
            try:
                return self._in_time(action)
            except UnavailableError as error:
                self._bear(error)
                time.sleep(min(self._backoff(attempt), self._left()))
        raise AssertionError("unreachable")

    def _bear(self, error: UnavailableError) -> None:
        """Note what fails for now; after the deadline, raise it."""
        if self._silent():
            raise self._kept(error) from error
        self._tell(f"retrying: {error}")
        self.backend.retried += 1

    def _in_time(self, action: Callable[[], T]) -> T:
        """Do something at the server that ends at the deadline."""
        service = self.backend.service
        service.until = time.monotonic() + self._left()
        try:
            return action()
        finally:
            service.until = None

    def _backoff(self, attempt: int) -> float:
        return min(self.backend.limits.backoff * 2 ** min(attempt, 30), LONGEST_PAUSE)

    def _left(self) -> float:
        """Seconds until the deadline, a little more than none."""
        return max(0.01, self.news + self.backend.limits.deadline - time.monotonic())

    def _pause(self) -> None:
        """Wait before the next round of questions.

        Raises
        ------
        BackendError
            If there was no news for too long.
        """
        limits = self.backend.limits
        quiet = time.monotonic() - self.news
        own = [work for work in self.under_way if not work.inherited]
        if self._silent() and own:
            for work in own:  # the next attempt looks whether they moved
                self.ledger.note(work.id, silent=True, last=work.heard)
            raise BackendError(
                f"no news of {_count(self.under_way)} at {self._host} for {_span(quiet)} (last state: "
                f"{', '.join(sorted({w.heard[0] for w in self.under_way}))}); look at the server with "
                f"`refusal-nn remote status`.{self._way_back()}"
            )
        self._tell()
        pause = min(limits.poll * (1 + quiet / 2), limits.poll * SLOWEST_POLL)
        if not self.under_way:
            pause = max(pause, self.not_before - time.monotonic())
        time.sleep(min(pause, self._left()))

    def _silent(self) -> bool:
        return time.monotonic() - self.news > self.backend.limits.deadline

    def _kept(self, error: UnavailableError) -> UnavailableError:
        if self.ledger.file is None:
            return error
        kept = "; what is done is kept: continue with `refusal-nn runs resume`"
        return UnavailableError(f"{str(error).rstrip('.')}{kept}.")

    def _way_back(self) -> str:
        if self.ledger.file is None:
            return ""
        return " The run is kept: continue with `refusal-nn runs resume`."

    @property
    def _host(self) -> str:
        return self.backend.service.host

    def _tell(self, more: str = "") -> None:
        if self.backend.notify is None:
            return
        counts = Counter(work.heard[0].lower() for work in self.under_way)
        states = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        line = "; ".join(part for part in (f"{self._host}: {states or 'no jobs'}", more) if part)
        if line != self.told:
            self.told = line
            self.backend.notify(line)


def _count(jobs: Sequence[Any]) -> str:
    return "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
