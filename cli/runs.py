"""``refusal-nn runs``: find, look at, check, continue, repeat, export and remove runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from refusal_nn.cli._analysis import show_as_command
from refusal_nn.cli._inputs import keeping
from refusal_nn.cli._options import again_options, json_option, stores_option, with_limits
from refusal_nn.cli._output import Table, confirm, notice, show
from refusal_nn.cli._types import NewFile
from refusal_nn.errors import RequestError

_FOR_SERVERS = ("host", "plain_http", "deadline", "detach")
"""Options that mean nothing where a run has no server."""

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
    found = [(run_name(path), problems(path)) for path in paths]
    show(
        [{"run": run, "ok": not bad, "problems": bad} for run, bad in found],
        *(f"{run}: {'; '.join(bad) or 'ok'}" for run, bad in found),
        notices=[] if found else [f"no runs in {stores}"],
    )
    if any(bad for _, bad in found):
        raise click.exceptions.Exit(1)


@command.command(name="resume")
@name_argument
@again_options
@click.option(
    "--forget-jobs",
    is_flag=True,
    help="Give up the jobs that were not collected and compute their batches again. [ndif]",
)
@stores_option
@json_option
def runs_resume(
    name: str, stores: Path, forget_jobs: bool, inputs: Sequence[str], **loading: Any
) -> None:
    """Continue a partial run: its analysis, with the arguments it records.

    A run whose jobs were left on a server is collected and, unless --detach is given again, finished.
    A run never says which server is given your access key: it goes on at the one of --host, NDIF_HOST
    or nnsight's configuration. One that cannot answer the jobs left at another is refused;
    --forget-jobs gives them up.
    """
    from refusal_nn.runs import call_of, load_again, repeat
    from refusal_nn.store import locate, run_name, run_path

    path = locate(run_path(stores, name))
    if not path.name.endswith(".partial"):
        notice(f"already complete: {path}")
        show({"run": path, "reused": True})
        return
    call = call_of(path)
    _check_server(path, call.backend, forget_jobs, loading)
    model = load_again(call, loading.pop("model"), **with_limits(loading))
    with keeping(path.parent, run_name(path), resume=True) as where:
        run = repeat(call, where, model, inputs, [stores])
    show_as_command(run)


@command.command(name="rerun")
@name_argument
@click.option("--name", "new", required=True, metavar="NEW", help="Name of the new run.")
@again_options
@stores_option
@json_option
def runs_rerun(name: str, new: str, stores: Path, inputs: Sequence[str], **loading: Any) -> None:
    """Make a complete run again under another name and say whether the arrays are equal.

    Its analysis is called with the arguments it records; runs that it goes on from are looked for in
    --stores. Exit code 1 if an array differs.
    """
    from refusal_nn.runs import call_of, load_again, open_run, repeat
    from refusal_nn.store import run_path

    old = open_run(stores, run_path(stores, name))
    if new == old.name:
        raise RequestError(f"run {name!r} cannot be made again under its own name; choose another.")
    call = call_of(old.path)
    old.tree.load()  # one that is damaged is not worth the work
    _check_server(old.path, call.backend, False, loading)
    model = load_again(call, loading.pop("model"), **with_limits(loading))
    with keeping(stores, new, resume=False) as where:
        made = repeat(call, where, model, inputs, [old.path.parent])
    equal = old.tree.equals(made.tree)
    notices = [f"{new}: arrays and labels {'equal' if equal else 'differ from'} those of {name}"]
    if made.reused:
        notices.insert(0, f"already complete: {made.path}")
    document = {"run": made.path, "of": name, "reused": made.reused, "equal": equal}
    show(document, notices=notices)
    if not equal:
        raise click.exceptions.Exit(1)


@command.command(name="export")
@name_argument
@click.argument("out", type=NewFile())
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
        confirm(f"Delete {', '.join(names)}?")
    removed = [remove(path) for path in paths]
    show([{"removed": path} for path in removed])
    for path in removed:
        notice(f"removed {path}")


def _check_server(path: Path, backend: str, forget_jobs: bool, loading: Mapping[str, Any]) -> None:
    """Compare the server that the user names with the one that jobs of a run were left at.

    Raises
    ------
    RequestError
        If they differ and the jobs are not to be given up, or the run is not one of a server.
    """
    from refusal_nn import store

    asked = [f"--{name.replace('_', '-')}" for name in _FOR_SERVERS if loading[name]]
    if backend != "ndif":
        if asked or forget_jobs:
            raise RequestError(
                f"run {store.run_name(path)!r} has no server: {(asked or ['--forget-jobs'])[0]} is for "
                "runs with --backend ndif."
            )
        return
    from refusal_nn.backends import Service

    host = Service.connect(loading["host"], plain_http=loading["plain_http"]).host
    entries = (entry for ledger in store.job_ledgers(path).values() for entry in ledger.jobs)
    left = [e for e in entries if e["state"] == "submitted" and e["host"] != host]
    if left and not forget_jobs:
        raise RequestError(
            f"run {store.run_name(path)!r} left job {left[0]['id']} at {left[0]['host']}, not at {host}; "
            f"to go on there name it, as it is given your access key: --host {left[0]['host']}; or "
            "give its jobs up with --forget-jobs."
        )
    if forget_jobs:
        notice(f"{store.forget_jobs(path)} jobs given up")
