"""Analyses kept as runs: names, fingerprints, provenance and inputs, the same way for every command."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from refusal_nn import store
from refusal_nn.errors import InterventionError, PromptError, RequestError, StoreError

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.store import Progress, Recorder

SCHEMA = 2
"""Raised when the meaning of stored variables changes, so that old runs are not taken for new ones."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Keeping:
    """Where and how runs are kept.

    Parameters
    ----------
    stores : Path
        Folder of runs.
    name : str, optional
        Name of the run; default ``<noun>-<verb>-<model>-<8 of the fingerprint>``. Letters, digits,
        ``.``, ``_`` and ``-``, beginning with a letter or digit.
    request : mapping
        What ``runs resume`` needs to make the same request again (``argv``, ``cwd``).
    command : str
        The command line for provenance, free of machine paths.
    resume : bool
        Insist that the run is there already, complete or partial.
    progress : callable, optional
        ``progress(stage, done, total)``. If it has a ``status``, that is given a line about the jobs
        under way on a server whenever it changes.

    Raises
    ------
    RequestError
        If the name is not one.
    """

    stores: Path
    name: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    command: str = "python"
    resume: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        # no separators: a run lies in the folder of runs, where `runs list` sees it
        if self.name is not None and (
            not _NAME.fullmatch(self.name) or self.name.endswith((".zarr", ".partial"))
        ):
            raise RequestError(
                f"{self.name!r} cannot be the name of a run; use letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit and without .zarr at the end (the folder is "
                "--stores)."
            )


@dataclass(frozen=True)
class Run:
    """A run that is complete.

    Attributes
    ----------
    path : Path
    tree : xarray.DataTree
    reused : bool
        It was there before, with the same fingerprint; nothing was computed.
    """

    path: Path
    tree: xr.DataTree
    reused: bool

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name.removesuffix(".zarr")

    @property
    def as_input(self) -> dict[str, str]:
        """How later runs refer to it: its name and the hash of its content."""
        return {"run": self.name, "hash": store.run_hash(self.path)}


Groups = Mapping[str, xr.Dataset]


def record(
    analysis: str,
    keeping: Keeping,
    work: Callable[[Recorder], tuple[Groups, Mapping[str, Any]]],
    *,
    model: Model,
    prompts_hash: str,
    options: Mapping[str, Any],
    seed: int,
    interventions: str = "[]",
    inputs: Sequence[Run] = (),
    keep: Sequence[str] = (),
) -> Run:
    """Run an analysis into a run, or report the run that already holds it.

    Parameters
    ----------
    analysis : str
        ``noun-verb``.
    keeping : Keeping
    work : callable
        Given a recorder, does the stages and returns the result groups and root attrs.
    model : Model
    prompts_hash : str
    options : mapping
        Everything else that decides the result; goes into the fingerprint and the attrs.
    seed : int
    interventions : str
        JSON of the interventions.
    inputs : sequence of Run
        Runs it is made from.
    keep : sequence of str
        Stages to keep as groups.

    Raises
    ------
    StoreError
        If the name is taken by another request.
    RequestError
        If ``resume`` was asked and there is no such run, or the request turns out to be wrong before a
        batch is done, or by what its prompts gave; nothing is left behind then.
    Detached
        If the model was loaded with ``detach`` and jobs are still under way.
    """
    noun, _, verb = analysis.partition("-")
    model.backend.learn_dtype(model)
    identity = model.identity()
    made_from = [run.as_input for run in inputs]
    fingerprint = store.fingerprint(
        {
            "analysis": analysis,
            "schema": SCHEMA,
            **identity,
            "prompts_hash": prompts_hash,
            "options": dict(options),
            "seed": seed,
            "interventions": interventions,
            "inputs": [entry["hash"] for entry in made_from],
        }
    )
    name = keeping.name or store.default_name(noun, verb, model.name, fingerprint)
    path = Path(keeping.stores) / f"{name}.zarr"
    if keeping.resume and not path.exists() and not path.with_name(f"{name}.zarr.partial").exists():
        raise RequestError(
            f"there is no run {name!r} to resume in {str(keeping.stores)!r}; leave --resume out to "
            "start it."
        )
    recorder = store.RunRecorder(
        path,
        fingerprint=fingerprint,
        provenance={
            "analysis": analysis,
            **identity,
            "prompts_hash": prompts_hash,
            "options": dict(options),
            "seed": seed,
            "interventions": interventions,
            "inputs": made_from,
            "versions": store.versions(),
            "command": keeping.command,
        },
        request=keeping.request,
        progress=keeping.progress,
    )
    with recorder:
        if recorder.already_complete:
            return Run(recorder.path, recorder.open(), reused=True)
        try:
            status = getattr(keeping.progress, "status", None)
            with model.backend.reporting(status, name):
                groups, attrs = work(recorder)
        except StoreError:
            raise  # of the folder, not of what was asked: it may go on later
        except RequestError as error:
            # prompts found unusable by measuring them stay so, and so do interventions that do not
            # fit: what was measured serves no other run. A server's refusals may pass, so what it
            # has computed stays.
            hopeless = isinstance(error, PromptError | InterventionError)
            recorder.abandon(with_batches=hopeless)
            raise
        # a result says what it was made from, so that it can be saved alone; a run says it itself
        own = {*identity, "prompts_hash"}
        root = groups["/"].copy()
        root.attrs = {k: v for k, v in root.attrs.items() if k not in own}
        attrs = {k: v for k, v in attrs.items() if k not in own}
        return Run(
            recorder.path, recorder.commit({**groups, "/": root}, attrs, keep=keep), reused=False
        )


def open_input(stores: Path, name: str, analysis: str) -> Run:
    """A complete run of one analysis, by name or path, whose files are as they were when it was made.

    Raises
    ------
    RequestError
        If there is no such run, it is partial, or it is of another analysis.
    VerificationError
        If its files do not match its manifest.
    """
    given = Path(name)
    path = given if given.parent != Path() or given.exists() else Path(stores) / name
    folder = store.locate(path)
    run = store.run_name(folder)
    if folder.name.endswith(".partial"):
        raise RequestError(
            f"run {run!r} is partial; finish it with `refusal-nn runs resume {run}` first."
        )
    store.verify(folder)
    attrs = store.read_attrs(folder)
    if attrs.get("analysis") != analysis:
        raise RequestError(
            f"run {run!r} is a {attrs.get('analysis')} run, but a {analysis} run is needed here."
        )
    return Run(folder, xr.open_datatree(folder, engine="zarr", chunks=None), reused=True)


def same_model(run: Run, model: Model) -> None:
    """Refuse to go on from a run that another model made.

    Raises
    ------
    RequestError
        If name, weights, tokenizer or template differ. Device, dtype and backend may.
    """
    mine = model.identity()
    differing = [
        key
        for key in ("model", "weights_hash", "tokenizer_hash", "template_hash")
        if run.tree.attrs.get(key) != mine[key]
    ]
    if differing:
        raise RequestError(
            f"run {run.name!r} was made with model {run.tree.attrs.get('model')!r}, which differs "
            f"from {model.name!r} in {', '.join(differing)}; pass the same --model and "
            "--chat-template."
        )
