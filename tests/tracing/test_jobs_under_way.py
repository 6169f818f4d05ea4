"""Jobs on a server are asked for once, found again after a crash, and never waited for in vain."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refusal_nn.backends import Limits, Ndif
from refusal_nn.backends._payload import Job, compress
from refusal_nn.backends.ndif._queue import Jobs
from refusal_nn.backends.ndif._service import Answer, UnansweredError
from refusal_nn.errors import BackendError, Detached, ModelError, RequestError, UnavailableError
from refusal_nn.store import JobLedger
from refusal_nn.testing import tiny_model
from tests.patience import limit

HOST = "http://server"
PATIENT = Limits(in_flight=2, deadline=limit(5), retries=2, backoff=0.001, poll=0.001)
QUICK = replace(PATIENT, deadline=0.3)  # for what is given up
DONE = Answer("done", "COMPLETED", url="here")
RUNNING = Answer("running", "RUNNING")
QUEUED = Answer("running", "QUEUED", "Moved to position 4.")
PASSING = Answer("failed", "ERROR", "Error starting model. Please try again later.")
MINE = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\nValueError: mine'


class Scripted:
    """A server that answers about its n-th job with the n-th script, the last answer for ever."""

    host = HOST

    def __init__(self, *scripts: Sequence[Answer | Exception | None]) -> None:
        self.scripts = [list(script) for script in scripts]
        self.jobs: dict[str, tuple[int, ...]] = {}
        self.asked: list[str] = []
        self.open: list[int] = []
        self.before_ask: Callable[[str], None] = lambda job: None
        self.gone: set[str] = set()
        self.unreadable: set[str] = set()
        self.away_for: list[Exception] = []  # what the next submissions meet
        self.received = 0
        self._ended: set[str] = set()

    def submit(self, blob: bytes, key: str, env: Any, compress: bool) -> str:
        refusal = self.away_for.pop(0) if self.away_for else None
        if refusal is not None and not isinstance(refusal, UnansweredError):
            raise refusal
        name = f"job{len(self.jobs)}"
        self.jobs[name] = tuple(json.loads(blob))
        if refusal is not None:
            raise refusal
        self.open.append(len(set(self.jobs) - self._ended))
        return name

    def ask(self, job: str) -> Answer | None:
        self.before_ask(job)
        self.asked.append(job)
        number = int(job.removeprefix("job"))
        script = self.scripts[min(number, len(self.scripts) - 1)]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        if answer is not None and answer.state != "running":
            self._ended.add(job)
        return Answer(answer.state, answer.status, answer.message, job) if answer else None

    def download(self, url: str) -> bytes:
        if url in self.gone:
            raise BackendError("the result of a job is gone.")
        if url in self.unreadable:
            return b"<html>"
        content = json.dumps(self.jobs[url]).encode()
        self.received += len(content)
        return content

    def scrub(self, text: str) -> str:
        return text


class Pairs:
    """Two batches a job; the answer of a batch is its number."""

    def jobs(self, batches: Sequence[int]) -> Iterator[Job]:
        for a in range(0, len(batches), 2):
            yield self.job(batches[a : a + 2])

    def job(self, batches: Sequence[int]) -> Job:
        return Job(tuple(batches))

    def blob(self, job: Job) -> bytes:
        return json.dumps(job.batches).encode()

    def answers(self, job: Job, content: bytes) -> list[int]:
        assert tuple(json.loads(content)) == job.batches
        return list(job.batches)


def jobs_at(server: Any, ledger: JobLedger | None = None, limits: Limits = PATIENT) -> Jobs:
    link = Ndif(server, "key", "org/model", limits)
    network = SimpleNamespace(_remoteable_get_env=dict)
    model: Any = SimpleNamespace(backend=link, nnsight=network)
    return Jobs(model, Pairs(), ledger if ledger is not None else JobLedger())


def interrupt(job: str) -> None:
    raise KeyboardInterrupt


def collected(jobs: Jobs, n: int, *, detach: bool = False) -> list[int]:
    found = []
    for batch, answer in jobs.answers(range(n), detach=detach):
        assert answer == batch
        found.append(batch)
    return found


def test_every_batch_is_answered_once_and_few_jobs_are_open_at_a_time() -> None:
    server = Scripted([RUNNING, DONE])
    assert sorted(collected(jobs_at(server), 11)) == list(range(11))
    assert [b for batches in server.jobs.values() for b in batches] == list(range(11))
    assert max(server.open) == QUICK.in_flight


def test_ids_and_sizes_are_on_disk_before_anyone_asks(tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([None, RUNNING, DONE])

    def check(job: str) -> None:
        entry = {e["id"]: e for e in json.loads(file.read_text())}[job]
        assert entry["sent"] == len(json.dumps(entry["batches"]))

    server.before_ask = check
    collected(jobs_at(server, JobLedger(file)), 4)
    states = {e["state"] for e in json.loads(file.read_text())}
    assert states == {"done"}


def test_a_job_left_by_a_process_that_died_is_collected_and_not_submitted(tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([RUNNING])
    server.before_ask = interrupt
    with pytest.raises(KeyboardInterrupt):
        collected(jobs_at(server, JobLedger(file)), 4)
    server.before_ask = lambda job: None
    server.scripts = [[RUNNING, DONE]]
    assert sorted(collected(jobs_at(server, JobLedger(file)), 4)) == [0, 1, 2, 3]
    assert len(server.jobs) == 2


def test_a_result_that_came_but_was_not_written_is_fetched_again_and_not_computed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([DONE])
    answers = jobs_at(server, JobLedger(file)).answers(range(2), detach=False)
    assert next(answers) == (0, 0)
    answers.close()  # killed before batch 0 is on disk
    assert collected(jobs_at(server, JobLedger(file)), 2) == [0, 1]
    assert len(server.jobs) == 1


def test_only_the_batches_that_are_missing_are_taken_of_an_old_job(tmp_path: Path) -> None:
    server = Scripted([DONE])
    ledger = JobLedger(tmp_path / "jobs.json")
    collected(jobs_at(server, ledger), 4)
    found = list(jobs_at(server, ledger).answers([2], detach=False))
    assert found == [(2, 2)]
    assert len(server.jobs) == 2


def test_a_failure_that_may_pass_is_repeated_with_the_same_batches() -> None:
    server = Scripted([RUNNING, PASSING], [PASSING], [DONE])
    jobs = jobs_at(server)
    assert collected(jobs, 2) == [0, 1]
    assert list(server.jobs.values()) == [(0, 1)] * 3
    assert jobs.backend.retried == 2
    assert [e["state"] for e in jobs.ledger.jobs] == ["failed", "failed", "done"]


def test_repetitions_end() -> None:
    server = Scripted([PASSING])
    with pytest.raises(UnavailableError, match="Please try again later"):
        collected(jobs_at(server), 2)
    assert len(server.jobs) == 1 + QUICK.retries


def test_an_error_of_the_job_itself_is_not_repeated() -> None:
    server = Scripted([Answer("failed", "ERROR", MINE)])
    with pytest.raises(BackendError, match=r"at a\.py:3: ValueError: mine"):
        collected(jobs_at(server), 2)
    assert len(server.jobs) == 1


@pytest.mark.parametrize("now", [QUEUED, None])
def test_silence_ends_at_the_deadline_and_a_job_that_still_does_not_move_is_sent_again(
    now: Answer | None, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([QUEUED])
    with pytest.raises(BackendError, match=r"no news of 1 job at .*QUEUED.*runs resume"):
        collected(jobs_at(server, JobLedger(file), QUICK), 2)
    server.scripts = [[now], [DONE]]
    asked = len(server.asked)
    assert collected(jobs_at(server, JobLedger(file)), 2) == [0, 1]
    assert server.asked[asked:].count("job0") == 1
    assert [e["state"] for e in JobLedger(file).jobs] == ["lost", "done"]


@pytest.mark.parametrize("now", [RUNNING, Answer("running", "QUEUED", "Moved to position 3.")])
def test_a_job_that_was_silent_but_runs_or_moved_is_waited_for_and_not_computed_twice(
    now: Answer, tmp_path: Path
) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([now if now.status == "RUNNING" else QUEUED])
    with pytest.raises(BackendError, match="no news"):
        collected(jobs_at(server, JobLedger(file), QUICK), 2)
    server.scripts = [[now, now, now, DONE]]
    assert collected(jobs_at(server, JobLedger(file)), 2) == [0, 1]
    assert len(server.jobs) == 1


def test_a_job_that_runs_without_end_is_given_up_after_one_more_deadline(tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([RUNNING])
    with pytest.raises(BackendError, match="no news"):
        collected(jobs_at(server, JobLedger(file), QUICK), 2)
    server.scripts = [[RUNNING], [DONE]]
    assert collected(jobs_at(server, JobLedger(file), QUICK), 2) == [0, 1]
    assert list(server.jobs) == ["job0", "job1"]


def test_moving_up_the_queue_is_news() -> None:
    moving = [Answer("running", "QUEUED", f"Moved to position {i}.") for i in range(40, 0, -1)]
    slow = Limits(deadline=1, poll=0.05)
    server = Scripted([*moving, DONE])
    assert collected(jobs_at(server, limits=slow), 2) == [0, 1]
    assert len(server.asked) == 41


def test_an_inherited_job_that_was_lost_unseen_costs_one_deadline(tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs.json")
    ledger.submitted("job0", [0, 1], host=HOST, sent=1)
    server = Scripted([None], [DONE])
    server.jobs["job0"] = (0, 1)
    assert collected(jobs_at(server, ledger, QUICK), 2) == [0, 1]
    assert list(server.jobs) == ["job0", "job1"]


def test_news_of_one_job_keeps_the_others_waiting() -> None:
    changing = [Answer("running", f"STEP{i}") for i in range(40)]
    server = Scripted([*changing, DONE], [RUNNING] * 41 + [DONE])
    slow = Limits(in_flight=2, deadline=1, backoff=0.001, poll=0.05)
    assert sorted(collected(jobs_at(server, limits=slow), 4)) == [0, 1, 2, 3]


def test_a_result_that_the_server_dropped_is_computed_again(tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs.json")
    server = Scripted([DONE])
    ledger.submitted("job0", [0, 1], host=HOST, sent=1)
    server.jobs["job0"] = (0, 1)
    server.gone = {"job0"}
    assert collected(jobs_at(server, ledger), 2) == [0, 1]
    assert [e["state"] for e in ledger.jobs] == ["gone", "done"]


def test_a_store_that_never_gives_results_out_ends_the_run_and_its_job_is_kept(
    tmp_path: Path,
) -> None:
    ledger = JobLedger(tmp_path / "jobs.json")
    server = Scripted([DONE])
    server.gone = {"job0", "job1"}
    with pytest.raises(BackendError, match=r"object store of http://server.*runs resume"):
        collected(jobs_at(server, ledger), 2)
    assert list(server.jobs) == ["job0"]
    assert [e["state"] for e in ledger.jobs] == ["submitted"]
    with pytest.raises(BackendError, match="object store"):
        collected(jobs_at(server, ledger), 2)  # an inherited job is sent again once
    assert [e["state"] for e in ledger.jobs] == ["gone", "submitted"]


@pytest.mark.parametrize("inherited", [False, True])
def test_a_result_that_cannot_be_read_is_computed_once_more(inherited, tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs.json")
    server = Scripted([DONE])
    if inherited:
        ledger.submitted("job0", [0, 1], host=HOST, sent=1)
        server.jobs["job0"] = (0, 1)
    server.unreadable = {"job0"}
    assert collected(jobs_at(server, ledger), 2) == [0, 1]
    assert [e["state"] for e in ledger.jobs] == ["gone", "done"]


def test_results_that_can_never_be_read_end_the_run(tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs.json")
    server = Scripted([DONE])
    server.unreadable = {f"job{i}" for i in range(9)}
    with pytest.raises(BackendError, match=r"cannot be read, nor could .*runs resume"):
        collected(jobs_at(server, ledger), 2)
    assert [e["state"] for e in ledger.jobs] == ["gone", "gone"]


def test_a_wrong_model_leaves_no_job_to_collect() -> None:
    class Wrong(Pairs):
        def answers(self, job: Job, content: bytes) -> list[int]:
            raise ModelError("the server runs another model.")

    jobs = jobs_at(Scripted([DONE]))
    jobs.work = Wrong()
    with pytest.raises(ModelError, match="another model"):
        collected(jobs, 4)
    assert {e["state"] for e in jobs.ledger.jobs} == {"failed"}


def test_a_job_whose_submission_got_no_answer_is_not_sent_twice(tmp_path: Path) -> None:
    server = Scripted([DONE])
    server.away_for = [UnansweredError("the server does not answer (ReadTimeout); try later.")]
    with pytest.raises(UnavailableError, match=r"may have taken all the same.*runs resume"):
        collected(jobs_at(server, JobLedger(tmp_path / "jobs.json")), 2)
    assert len(server.jobs) == 1


def test_a_job_that_the_server_does_not_take_for_now_is_sent_later_and_others_are_collected() -> (
    None
):
    server = Scripted([RUNNING, RUNNING, DONE])
    quota = UnavailableError("the server takes no more jobs for now.")
    jobs = jobs_at(server, limits=Limits(deadline=limit(5), retries=0, backoff=0.01, poll=0.001))
    submit = server.submit

    def one_at_a_time(*given: Any) -> str:
        if len(set(server.jobs) - server._ended) >= 1:
            raise quota
        return submit(*given)

    server.submit = one_at_a_time  # type: ignore[method-assign]
    assert sorted(collected(jobs, 6)) == list(range(6))
    assert list(server.jobs.values()) == [(0, 1), (2, 3), (4, 5)]


def test_a_server_that_takes_no_job_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    server = Scripted([DONE])
    server.away_for = [UnavailableError("away.")] * 10_000
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"away; .*runs resume"):
        collected(jobs_at(server, JobLedger(tmp_path / "jobs.json"), QUICK), 2)
    assert QUICK.deadline < time.monotonic() - began < limit(10 * QUICK.deadline)


def test_an_outage_is_waited_out_until_the_deadline_however_many_questions_it_takes() -> None:
    away = UnavailableError("away.")
    server = Scripted([RUNNING, *[away] * 8, DONE])
    limits = Limits(deadline=limit(5), retries=0, backoff=0.001, poll=0.001)
    assert collected(jobs_at(server, limits=limits), 2) == [0, 1]
    assert len(server.jobs) == 1


def test_a_request_is_told_when_its_time_ends() -> None:
    seen: list[float] = []
    server = Scripted([RUNNING, DONE])
    jobs = jobs_at(server)
    server.before_ask = lambda job: seen.append(jobs.backend.service.until - time.monotonic())
    collected(jobs, 2)
    assert seen
    assert all(0 < left <= PATIENT.deadline for left in seen)


def test_detaching_without_a_ledger_is_refused_before_anything_is_sent() -> None:
    server = Scripted([RUNNING])
    with pytest.raises(RequestError, match="detach needs a run"):
        collected(jobs_at(server, JobLedger()), 4, detach=True)
    assert not server.jobs


def test_a_server_that_is_away_for_a_moment_is_asked_again() -> None:
    away = UnavailableError("away.")
    server = Scripted([away, RUNNING, away, DONE])
    assert collected(jobs_at(server), 2) == [0, 1]
    assert len(server.jobs) == 1


def test_a_server_that_stays_away_ends_the_wait_and_names_the_way_back(tmp_path: Path) -> None:
    server = Scripted([UnavailableError("away.")])
    ledger = JobLedger(tmp_path / "jobs.json")
    with pytest.raises(UnavailableError, match=r"away; what is done is kept: .*runs resume"):
        collected(jobs_at(server, ledger, QUICK), 2)
    assert ledger.jobs[0]["state"] == "submitted"


def test_jobs_left_at_another_server_are_not_computed_again_in_silence(tmp_path: Path) -> None:
    ledger = JobLedger(tmp_path / "jobs.json")
    ledger.submitted("job0", [0, 1], host="http://elsewhere", sent=1)
    with pytest.raises(RequestError, match=r"job0 at http://elsewhere.*--forget-jobs"):
        collected(jobs_at(Scripted([DONE]), ledger), 2)


def test_detaching_submits_everything_and_a_later_attempt_collects(tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    server = Scripted([RUNNING])
    with pytest.raises(Detached) as left:
        collected(jobs_at(server, JobLedger(file)), 7, detach=True)
    assert list(left.value.jobs) == ["job0", "job1", "job2", "job3"]  # not only two in flight
    server.scripts = [[DONE], [RUNNING], [DONE], [DONE]]
    found: list[int] = []
    with pytest.raises(Detached) as left:
        found.extend(b for b, _ in jobs_at(server, JobLedger(file)).answers(range(7), detach=True))
    assert sorted(found) == [0, 1, 4, 5, 6]
    assert list(left.value.jobs) == ["job1"]
    server.scripts = [[DONE]]
    assert list(jobs_at(server, JobLedger(file)).answers([2, 3], detach=True)) == [(2, 2), (3, 3)]
    assert len(server.jobs) == 4


def test_the_status_line_tells_of_every_change_once() -> None:
    server = Scripted([None, RUNNING, RUNNING, DONE])
    jobs = jobs_at(server)
    lines: list[str] = []
    jobs.backend.notify = lines.append
    collected(jobs, 2)
    assert lines == list(dict.fromkeys(lines))
    assert lines[0] == f"{HOST}: 1 submitted"
    assert f"{HOST}: 1 running" in lines


def told(dtype: str) -> bytes:
    """What a server answers to a job of no batches."""
    import io

    import torch

    nothing: dict[str, Any] = {"layout": [[]], "flat": {}}
    facts = {"dtype": dtype, "commit": "", "weights": ""}
    buffer = io.BytesIO()
    torch.save({"answer": {"batches": nothing, "check": nothing, "facts": facts}}, buffer)
    return compress(buffer.getvalue())


def test_the_dtype_of_a_model_that_is_not_deployed_yet_is_learned_before_a_run() -> None:
    model = replace(tiny_model("llama"))  # a copy: the session's own must stay local
    assert model.identity()["dtype"] == "float32"
    server: Any = Scripted([DONE])
    server.submit = lambda *_: server.jobs.setdefault("job0", ()) or "job0"
    server.download = lambda url: told("bfloat16")
    model.backend = Ndif(
        server, "key", "org/model", replace(PATIENT, deadline=limit(60)), dtype_known=False
    )
    model.backend.learn_dtype(model)
    assert model.identity()["dtype"] == "bfloat16"
    model.backend.learn_dtype(model)
    assert len(server.asked) == 1  # it is known now
    server.download = lambda url: told("float16")
    with pytest.raises(ModelError, match="in float16, but bfloat16 was expected"):
        model.backend.run(model, [])
