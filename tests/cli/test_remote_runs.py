"""Runs whose jobs were left at a server are continued there, listed, and never thrown away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from refusal_nn.backends.ndif._deployments import model_key
from refusal_nn.cli import cli
from tests.loopback import Loopback

KEY = "0f0f0f0f-1111-2222-3333-444444444444"


class Server(Loopback):
    """Takes jobs and never ends one."""

    def __init__(self) -> None:
        self.jobs = 0
        self.deployed = True
        self.portal = False
        super().__init__()

    def answer(self, path: str) -> bytes:
        if path.startswith("/response"):
            if self.portal:
                return b"<html>log in</html>"
            return json.dumps({"status": "QUEUED", "description": ""}).encode()
        if path == "/request":
            self.jobs += 1
            return json.dumps({"id": f"job{self.jobs}", "status": "RECEIVED"}).encode()
        deployment = {
            "model_key": model_key("refusal-nn/tiny-refuser", None),
            "repo_id": "refusal-nn/tiny-refuser",
            "revision": None,
            "task": "text-generation",
            "deployment_level": "HOT",
            "application_state": "RUNNING",
            "dtype": "bfloat16",
        }
        return json.dumps({"deployments": {"a": deployment} if self.deployed else {}}).encode()


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with Server() as here, Server() as other:
        yield here, other


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


@pytest.fixture
def left(servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was begun at the server of NDIF_HOST and left; NDIF_HOST then names the other."""
    here, other = servers
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    monkeypatch.setenv("NDIF_HOST", here.url)
    words = ("--model", "tiny-refuser", "--prompts", "tiny-bench", "--backend", "ndif")
    begun = run("direction", "extract", *words, "--stores", tmp_path, "--name", "d", "--detach")
    assert begun.exit_code == 0, begun.output
    assert here.jobs == 1
    monkeypatch.setenv("NDIF_HOST", other.url)
    return tmp_path


def resume(stores: Path, *more: object) -> Result:
    return run("runs", "resume", "d", "--stores", stores, "--detach", *more)


def states(stores: Path) -> list[tuple[str, str, str]]:
    (file,) = (stores / "d.zarr.partial").glob("*.jobs.json")
    return [(e["id"], e["state"], e["host"]) for e in json.loads(file.read_text())]


def test_the_server_a_run_was_begun_at_gets_the_key_only_when_it_is_named(servers, left) -> None:
    """What stands in a run is no wish of the user's, who now means another server."""
    here, other = servers
    asked = len(here.seen)
    refused = resume(left)
    assert refused.exit_code == 2
    assert f"left job job1 at {here.url}" in refused.output
    assert f"--host {here.url}" in refused.output
    assert (len(here.seen), other.seen) == (asked, [])
    done = resume(left, "--host", here.url)
    assert done.exit_code == 0, done.output
    assert "job1" in done.output
    assert here.jobs == 1
    assert other.seen == []


def test_a_run_goes_on_after_its_model_was_evicted(servers, left) -> None:
    here, _ = servers
    here.deployed = False
    done = resume(left, "--host", here.url)
    assert done.exit_code == 0, done.output
    assert here.jobs == 1


def test_jobs_are_given_up_only_when_asked_and_the_run_then_stays_where_it_went(
    servers, left
) -> None:
    here, other = servers
    refused = resume(left, "--host", other.url)
    assert refused.exit_code == 2
    assert f"left job job1 at {here.url}" in refused.output
    assert other.seen == []
    assert states(left) == [("job1", "submitted", here.url)]
    moved = resume(left, "--host", other.url, "--forget-jobs")
    assert moved.exit_code == 0, moved.output
    assert states(left) == [("job1", "lost", here.url), ("job1", "submitted", other.url)]
    asked = len(here.seen)
    assert resume(left).exit_code == 0  # NDIF_HOST names it
    assert len(here.seen) == asked
    assert other.jobs == 1


def test_the_same_command_at_another_server_is_refused_and_the_run_is_kept(servers, left) -> None:
    here, other = servers
    words = ("--model", "tiny-refuser", "--prompts", "tiny-bench", "--backend", "ndif", "--resume")
    where = ("--host", other.url, "--stores", left, "--name", "d")
    refused = run("direction", "extract", *words, *where)
    assert refused.exit_code == 2
    assert "--forget-jobs" in refused.output
    assert other.jobs == 0
    assert states(left) == [("job1", "submitted", here.url)]


def test_an_answer_of_a_login_page_ends_the_wait_and_keeps_the_run(servers, left) -> None:
    here, _ = servers
    here.portal = True
    words = ("--model", "tiny-refuser", "--prompts", "tiny-bench", "--backend", "ndif", "--resume")
    where = ("--host", here.url, "--stores", left, "--name", "d", "--deadline", 1)
    ended = run("direction", "extract", *words, *where, "--dtype", "bfloat16")
    assert ended.exit_code == 1, ended.output
    assert "runs resume" in ended.output
    assert states(left) == [("job1", "submitted", here.url)]


def test_only_the_server_that_is_named_is_asked_about_jobs(servers, left) -> None:
    here, other = servers
    file = next((left / "d.zarr.partial").glob("*.jobs.json"))
    (entry,) = json.loads(file.read_text())
    more = [{**entry, "id": f"odd{i}", "host": other.url} for i in range(3)]
    file.write_text(json.dumps([*more, entry]))
    asked = len(here.seen)
    other.portal = True
    done = run("remote", "jobs", "--stores", left, "--json")
    assert done.exit_code == 0, done.output
    found = {job["job"]: job["state"] for job in json.loads(done.stdout)}
    assert found["job1"] == f"not asked: name its server with --host {here.url}"
    assert len(here.seen) == asked
    assert all("is not an NDIF server" in found[f"odd{i}"] for i in range(3))
    assert len(other.seen) == 1  # not asked again after it failed
    done = run("remote", "jobs", "--stores", left, "--host", here.url, "--json")
    assert {j["job"]: j["state"] for j in json.loads(done.stdout)}["job1"] == "queued"
    assert len(other.seen) == 1


def test_a_partial_run_shows_how_its_jobs_are(left) -> None:
    shown = json.loads(run("runs", "show", "d", "--stores", left, "--json").stdout)
    assert list(shown["jobs"].values()) == [{"submitted": 1}]
    assert "submitted" in run("runs", "show", "d", "--stores", left).stdout


def test_what_is_for_runs_at_a_server_is_refused_for_others(left) -> None:
    file = left / "d.zarr.partial" / "call.json"
    call = json.loads(file.read_text())
    file.write_text(json.dumps({**call, "model": {**call["model"], "backend": "local"}}))
    alone = run("runs", "resume", "d", "--stores", left, "--forget-jobs")
    assert "--forget-jobs is for runs with --backend ndif" in alone.output
    refused = resume(left)
    assert refused.exit_code == 2
    assert "--detach is for runs with --backend ndif" in refused.output


@pytest.mark.parametrize("when", ["1e400", "1" + "0" * 400, "-1"])
def test_a_ledger_of_another_time_costs_the_list_of_jobs_a_notice(servers, left, when: str) -> None:
    (file,) = (left / "d.zarr.partial").glob("*.jobs.json")
    (job,) = json.loads(file.read_text())
    file.write_text(json.dumps([{**job, "submitted": "WHEN"}]).replace('"WHEN"', when))
    done = run("remote", "jobs", "--stores", left)
    assert done.exit_code == 0, done.output
    assert "jobs.json" in done.output
    assert "no jobs under way" in done.output


def test_a_job_without_a_server_is_listed_and_nobody_is_asked(servers, left) -> None:
    (file,) = (left / "d.zarr.partial").glob("*.jobs.json")
    (job,) = json.loads(file.read_text())
    del job["host"]
    file.write_text(json.dumps([job]))
    done = run("remote", "jobs", "--stores", left, "--json")
    (listed,) = json.loads(done.stdout)
    assert (listed["host"], listed["state"]) == ("", "not asked: its record names no server")
    assert servers[1].seen == []
