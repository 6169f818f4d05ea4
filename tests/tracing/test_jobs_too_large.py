"""A job that is too large for a server is sent in halves, and only a single batch is an error."""

from __future__ import annotations

from typing import Any

import pytest

from refusal_nn.backends._payload import Job
from refusal_nn.backends.ndif._service import Answer, TooLargeError
from refusal_nn.errors import BackendError, RequestError
from refusal_nn.store import JobLedger
from tests.tracing.test_jobs_under_way import Pairs, Scripted, collected, jobs_at

DONE = Answer("done", "COMPLETED", url="here")
TOO_LONG = Answer("failed", "ERROR", "Job exceeded the execution timeout of 3600 seconds.")
NO_MEMORY = Answer(
    "failed",
    "ERROR",
    'Traceback (most recent call last):\n  File "a.py", line 3, in f\n'
    "torch.OutOfMemoryError: CUDA out of memory.",
)


class Fours(Pairs):
    """Four batches a job."""

    def jobs(self, batches: Any) -> Any:
        for a in range(0, len(batches), 4):
            yield self.job(batches[a : a + 4])

    def job(self, batches: Any) -> Job:
        return Job(tuple(batches))


class Narrow(Scripted):
    """A server whose jobs fail with more than so many batches."""

    def __init__(self, most: int, failure: Answer | Exception) -> None:
        super().__init__([DONE])
        self.most = most
        self.failure = failure

    def submit(self, blob: bytes, *rest: Any) -> str:
        if isinstance(self.failure, Exception) and len(blob.split(b",")) > self.most:
            raise self.failure
        return super().submit(blob, *rest)

    def ask(self, job: str) -> Answer | None:
        answer = super().ask(job)
        if isinstance(self.failure, Answer) and len(self.jobs[job]) > self.most:
            return self.failure
        return answer


def narrow(most: int, failure: Answer | Exception) -> tuple[Any, Narrow, JobLedger]:
    server, ledger = Narrow(most, failure), JobLedger()
    jobs = jobs_at(server, ledger)
    jobs.work = Fours()
    return jobs, server, ledger


FAILURES = [TOO_LONG, NO_MEMORY, TooLargeError("takes no job of this size; smaller --batch-size.")]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_job_that_is_too_large_is_halved_until_it_passes(most: int, failure) -> None:
    jobs, _, ledger = narrow(most, failure)
    assert sorted(collected(jobs, 11)) == list(range(11))
    done = [b for e in ledger.jobs if e["state"] == "done" for b in e["batches"]]
    assert sorted(done) == list(range(11))
    assert max(len(e["batches"]) for e in ledger.jobs if e["state"] == "done") <= most


def test_what_is_still_to_be_sent_is_cut_at_once() -> None:
    jobs, server, _ = narrow(2, TOO_LONG)
    assert len(collected(jobs, 40)) == 40
    large = [batches for batches in server.jobs.values() if len(batches) > 2]
    assert len(large) <= 2  # as many as were in flight when the first one failed


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(TOO_LONG, BackendError), (NO_MEMORY, BackendError), (FAILURES[2], RequestError)],
)
def test_a_single_batch_that_is_too_large_is_an_error_with_its_fix(failure, kind) -> None:
    jobs, _, _ = narrow(0, failure)
    with pytest.raises(kind, match="smaller --batch-size"):
        collected(jobs, 8)
