"""``refusal-nn remote``: what an NDIF server offers, and the jobs left there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._options import host_option, json_option, stores_option
from refusal_nn.cli._output import Table, show
from refusal_nn.errors import RefusalNNError, StoreError

if TYPE_CHECKING:
    from refusal_nn.backends import Service

ANSWER_SECONDS = 15.0
"""How long a server is waited for when its jobs are listed."""


@click.group(name="remote")
def command() -> None:
    """Ask an NDIF server for its models, versions and the state of jobs."""


@command.command(name="status")
@host_option
@json_option
def remote_status(host: str | None, plain_http: bool) -> None:
    """Show what the server has deployed and where its versions differ from those here.

    A difference in nnsight, torch or transformers may change or break results.
    """
    from refusal_nn.backends import Service, compare_versions, deployed

    service = Service.connect(host, plain_http=plain_http)
    deployments = deployed(service.status())
    versions = compare_versions(service.environment())
    owner = service.whoami() if service.key else None
    key = "none" if not service.key else f"of {owner}" if owner else "the server knows no owner"
    columns = ("model", "revision", "task", "state", "level", "dtype", "replicas")
    show(
        {
            "host": service.host,
            "key": owner or ("unknown to the server" if service.key else None),
            "deployments": deployments,
            "versions": versions,
        },
        Table([("host", service.host), ("access key", key)], ["property", "value"]),
        Table(
            [{"model": d["repository"], **d} for d in deployments],
            columns,
            empty="no model is deployed",
        ),
        Table([{**v, "differs": v["here"] != v["server"]} for v in versions]),
    )


@command.command(name="jobs")
@host_option
@stores_option
@json_option
def remote_jobs(host: str | None, plain_http: bool, stores: Path) -> None:
    """List the jobs of unfinished runs and ask the server how they are.

    Only the server of --host, NDIF_HOST or nnsight's configuration is asked, whatever a run says, as
    it is given your access key. `refusal-nn runs resume RUN` collects those that are done.
    """
    from refusal_nn.backends import Service
    from refusal_nn.store import job_ledgers, open_runs

    service = Service.connect(host, deadline=ANSWER_SECONDS, plain_http=plain_http)
    asked = _Host(service)
    jobs: list[dict[str, Any]] = []
    unread: list[str] = []
    for run in open_runs(stores).select(state="partial"):
        try:
            jobs += [
                asked.row(run.name, stage, entry)
                for stage, ledger in job_ledgers(run.path).items()
                for entry in ledger.jobs
            ]
        except StoreError as error:
            unread.append(str(error))
    show(jobs, Table(jobs, empty="no jobs under way"), notices=unread)


class _Host:
    """A server that is asked about jobs until it fails to answer."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.failed = ""

    def row(self, run: str, stage: str, entry: dict[str, Any]) -> dict[str, Any]:
        """What is listed of a job."""
        return {
            "run": run,
            "stage": stage,
            "job": entry["id"],
            "state": self.state_of(entry),
            "batches": len(entry["batches"]),
            "minutes": round((time.time() - entry["submitted"]) / 60, 1),
            "host": entry.get("host", ""),
        }

    def state_of(self, entry: dict[str, Any]) -> str:
        """The server's word on a job that is under way, else how it ended."""
        if entry["state"] != "submitted":
            return {"done": "collected"}.get(entry["state"], entry["state"])
        host = entry.get("host")
        if not host:
            return "not asked: its record names no server"
        if host != self.service.host:
            return f"not asked: name its server with --host {host}"
        if self.failed:
            return self.failed
        try:
            answer = self.service.ask(entry["id"])
        except RefusalNNError as error:
            # one reason for all jobs there: the next question would take as long to fail
            self.failed = f"unknown: {str(error).rstrip('.')}"
            return self.failed
        if answer is None:
            return "unknown to the server"
        return "done: ready to collect" if answer.state == "done" else str(answer.status).lower()
