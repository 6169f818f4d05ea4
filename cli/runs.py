"""``refusal-nn runs``: find, look at, check, continue, repeat, export and remove runs."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from refusal_nn.cli._options import json_option, stores_option
from refusal_nn.cli._output import Table, notice, show
from refusal_nn.cli._request import invoke
from refusal_nn.errors import RequestError

name_argument = click.argument("name")


@click.group(name="runs")
def command() -> None:
    """Find, check, continue, repeat, export and remove runs.

    A run is named by its NAME in the folder of runs, or by its path.
    """


@command.command(name="list")
@stores_option
@click.option("--model", help="Only runs of this model.")
@click.option("--analysis", help="Only runs of this analysis.")
@click.option("--state", type=click.Choice(["complete", "partial", "damaged"]), help="Only these.")
@json_option
def runs_list(stores: Path, **conditions: str | None) -> None:
    """List the runs of a folder, complete and partial."""
    from refusal_nn.store import open_runs

    runs = open_runs(stores).select(**{k: v for k, v in conditions.items() if v is not None})
    keys = ("analysis", "model", "backend", "created")
    rows = [[run.name, run.state, *(run.attrs.get(key) for key in keys)] for run in runs]
    show(
        [
            {"name": r.name, "state": r.state, "path": r.path, "attrs": r.attrs}
            | ({"reason": r.reason} if r.reason else {})
            for r in runs
        ],
        Table(rows, ["name", "state", *keys], empty=f"no runs in {stores}"),
        *(f"{r.name} is damaged: {r.reason}" for r in runs if r.reason),
    )


@command.command(name="show")
@name_argument
@stores_option
@json_option
def runs_show(name: str, stores: Path) -> None:
    """Show a run's provenance, dims and variables; of a partial run, how far it got."""
    from refusal_nn.store import describe, job_ledgers, locate, run_path

    path = locate(run_path(stores, name))
    shown = describe(path)
    if "stages" in shown:
        shown["jobs"] = {
            stage: dict(Counter(entry["state"] for entry in ledger.jobs))
            for stage, ledger in job_ledgers(path).items()
        }
    facts = {key: shown[key] for key in ("name", "state", "hash") if key in shown}
    tables = [Table([*facts.items(), *shown["attrs"].items()], ["attribute", "value"])]
    if "stages" in shown:
        rows = [[stage, *counts] for stage, counts in shown["stages"].items()]
        tables.append(Table(rows, ["stage", "batches", "of"], empty="no stage was begun"))
    if shown.get("jobs"):
        rows = [[stage, n, s] for stage, of in shown["jobs"].items() for s, n in of.items()]
        tables.append(Table(rows, ["stage", "jobs", "state"]))
    for group, content in shown.get("groups", {}).items():
        sizes = ", ".join(f"{dim} {size}" for dim, size in content["dims"].items())
        variables = [
            {"variable": variable, **v, "dims": ", ".join(v["dims"])}
            for variable, v in content["variables"].items()
        ]
        title = f"{group} ({sizes})" if sizes else group
        tables.append(Table(variables, title=title, empty=f"{group}: no variables"))
    show(shown, *tables)


@command.command(name="verify")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@stores_option
@json_option
def runs_verify(names: Sequence[str], stores: Path) -> None:
    """Compare every file with the hash recorded when the run was finished; default: all runs.

    Exit code 1 if a file is missing, changed or new, or a run is incomplete.
    """
    from refusal_nn.store import open_runs, problems, run_name, run_path

    paths = [run_path(stores, name) for name in names] or [run.path for run in open_runs(stores)]
    found = {run_name(path): problems(path) for path in paths}
    show(
        [{"run": run, "ok": not bad, "problems": bad} for run, bad in found.items()],
        *(f"{run}: {'; '.join(bad) or 'ok'}" for run, bad in found.items()),
        notices=[] if found else [f"no runs in {stores}"],
    )
    if any(found.values()):
        raise click.exceptions.Exit(1)


@command.command(name="resume")
@name_argument
@stores_option
@click.option("--json", "as_json", is_flag=True, help="As if the command had been given --json.")
@click.option(
    "--detach",
    is_flag=True,
    help="Collect the jobs that are done, submit the next ones and leave. [ndif]",
)
@click.option(
    "--host", metavar="URL", help="Continue at another server than the run was begun at. [ndif]"
)
@click.option(
    "--forget-jobs",
    is_flag=True,
    help="Give up the jobs that were not collected and compute their batches again. [ndif]",
)
def runs_resume(
    name: str, stores: Path, as_json: bool, detach: bool, host: str | None, forget_jobs: bool
) -> None:
    """Continue a partial run with the command that began it, where it was begun.

    A run whose jobs were left on a server is collected and, unless --detach is given again, finished.
    It goes on at the server it was begun at, whatever NDIF_HOST says now; with --host it goes on at
    another, which cannot answer the jobs left at the first: --forget-jobs.
    """
    from refusal_nn import store
    from refusal_nn.store import locate, request_of, run_path

    path = locate(run_path(stores, name))
    if not path.name.endswith(".partial"):
        notice(f"already complete: {path}")
        return
    request = request_of(path)
    if not request.get("argv"):
        raise RequestError(
            f"run {name!r} was begun from Python, not by a command; run the same code again and it "
            "continues."
        )
    argv = _without(request["argv"], values=(), flags=("--detach",))
    if "host" in request:
        from refusal_nn.backends import Service

        if host is not None:
            request["host"] = Service.connect(host).host
        left = _jobs_elsewhere(path, request["host"])
        if left and not forget_jobs:
            raise RequestError(
                f"run {name!r} left job {left[0]['id']} at {left[0]['host']}, not at "
                f"{request['host']}; resume it without --host, or give its jobs up with "
                "--forget-jobs."
            )
        if forget_jobs:
            notice(f"{store.forget_jobs(path)} jobs given up")
        store.change_request(path, host=request["host"])
        argv = _without(argv, values=("--host", "--dtype"), flags=())
        # the server may not tell the dtype now, and the run has one
        argv += ["--host", request["host"], "--dtype", str(store.read_attrs(path)["dtype"])]
    elif host is not None or forget_jobs:
        raise RequestError(
            f"run {name!r} has no server: --host and --forget-jobs are for runs with --backend ndif."
        )
    wanted = {"--resume": True, "--json": as_json, "--detach": detach}
    argv += [flag for flag, on in wanted.items() if on and flag not in argv]
    notice(f"refusal-nn {shlex.join(argv)}")
    invoke(argv, cwd=request.get("cwd"))


@command.command(name="rerun")
@name_argument
@click.option("--name", "new", required=True, metavar="NEW", help="Name of the new run.")
@stores_option
@json_option
def runs_rerun(name: str, new: str, stores: Path) -> None:
    """Make a complete run again under another name and say whether the arrays are equal.

    Files the command read are looked for here, by the names it recorded. Exit code 1 if an array
    differs.
    """
    from refusal_nn.cli import NOUNS
    from refusal_nn.store import open_runs, run_path

    path = run_path(stores, name)
    old = open_runs(path.parent)[path.name]
    recorded = shlex.split(old.attrs.get("command", ""))
    if recorded[:1] != ["refusal-nn"]:
        raise RequestError(
            f"run {name!r} was not made by a command; run the code that made it again."
        )
    if next((word for word in recorded if word in NOUNS), None) == "demo":
        step = str(old.attrs.get("analysis", "")).replace("-", " ")
        raise RequestError(
            f"run {name!r} is one of the four that `refusal-nn demo` made, which cannot be repeated "
            f"alone; repeat the demo in another folder (--stores DIR), or make this step with "
            f"`refusal-nn {step}`."
        )
    argv = _without(
        recorded[1:], values=("--name", "--stores"), flags=("--resume", "--json", "--detach")
    )
    before = old.open()
    invoke([*argv, "--stores", str(stores), "--name", new])
    made = open_runs(stores)[new]
    equal = before.equals(made.open())
    show({"run": made.path, "of": name, "equal": equal})
    notice(f"{new}: arrays and labels {'equal' if equal else 'differ from'} those of {name}")
    if not equal:
        raise click.exceptions.Exit(1)


@command.command(name="export")
@name_argument
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@stores_option
@click.option(
    "--format", "kind", type=click.Choice(["netcdf", "csv"]), help="Default: by OUT's ending."
)
@click.option("--group", help="Group to export as CSV; default: the root.")
@json_option
def runs_export(name: str, out: Path, stores: Path, kind: str | None, group: str | None) -> None:
    """Write a complete run to OUT: netCDF (.nc), or one group as a table (.csv)."""
    from refusal_nn.store import export, run_path

    written = export(run_path(stores, name), out, kind=kind, group=group)
    show({"run": name, "file": written})
    notice(f"wrote {written}")


@command.command(name="rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@stores_option
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
def runs_rm(names: Sequence[str], stores: Path, yes: bool) -> None:
    """Delete runs, complete or partial."""
    from refusal_nn.store import remove, run_path

    paths = [run_path(stores, name) for name in names]
    if not yes:
        click.confirm(f"Delete {', '.join(names)}?", abort=True, err=True)
    removed = [remove(path) for path in paths]
    show([{"removed": path} for path in removed])
    for path in removed:
        notice(f"removed {path}")


def _jobs_elsewhere(partial: Path, host: str) -> list[dict[str, Any]]:
    """Jobs of a partial run that nobody collected and that another server has."""
    from refusal_nn.store import job_ledgers

    entries = (entry for ledger in job_ledgers(partial).values() for entry in ledger.jobs)
    return [e for e in entries if e["state"] == "submitted" and e["host"] != host]


def _without(argv: Sequence[str], *, values: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words of a command but for some options."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in values:
            next(words, None)
        elif word not in flags and not word.startswith(tuple(f"{option}=" for option in values)):
            kept.append(word)
    return kept
