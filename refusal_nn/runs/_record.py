"""A call of an analysis kept as a run, the same way for every analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from refusal_nn import store
from refusal_nn.errors import (
    BackendError,
    InterventionError,
    PromptError,
    RequestError,
    StoreError,
    WorkError,
)
from refusal_nn.runs._analysis import Analysis, declared_by
from refusal_nn.runs._keeping import Keeping
from refusal_nn.runs._limits import check_prompts
from refusal_nn.runs._request import Request, request_of
from refusal_nn.runs._used import split_used


def record(
    function: Callable[..., Any],
    *args: Any,
    keep: Keeping,
    made_from: Sequence[Any] = (),
    **kwargs: Any,
) -> store.Run:
    """Call an analysis and keep the result as a run, or report the run that already holds it.

    A run that was killed goes on where it was, with the batch boundaries it was begun with.

    Parameters
    ----------
    function : callable
        Declared with :func:`refusal_nn.runs.analysis`, such as ``rn.directions.score``.
    *args, **kwargs
        Its arguments, without ``recorder``. Where it goes on from a result: a run, the name of one in
        the folder of runs, or what the earlier analysis returned.
    keep : Keeping
    made_from : sequence
        Further results that an argument was made from, such as the direction of a metric.

    Returns
    -------
    Run
        Its ``reused`` says whether it was there before.

    Raises
    ------
    StoreError
        If the name is taken by another request.
    RequestError
        If ``resume`` was asked and there is no such run, or the request turns out to be wrong before a
        batch is done, or by what its prompts gave; nothing is left behind then.
    Detached
        If the model was loaded with ``detach`` and jobs are still under way.

    Examples
    --------
    ::

        kept = rn.Keeping("stores")
        candidates = rn.record(rn.directions.extract, model, prompts.train, keep=kept)
        scores = rn.record(rn.directions.score, model, candidates, prompts.val, keep=kept)
    """
    declared = declared_by(function)
    request = request_of(declared, declared.bind(args, kwargs), keep.stores, made_from)
    if request.model is not None:
        check_prompts(request.model, request.arguments)
        request.model.backend.learn_dtype(request.model)
    inputs = [{"run": result.name, "hash": result.hash} for result in request.inputs]
    facts = {
        **request.identity(),
        "prompts_hash": request.prompts_hash,
        "options": request.options,
        "seed": request.seed,
        "interventions": request.interventions,
    }
    fingerprint = store.fingerprint(
        {
            "analysis": request.name,
            "version": declared.version,
            **facts,
            "inputs": [entry["hash"] for entry in inputs],
        }
    )
    noun, _, verb = request.name.partition("-")
    name = keep.name or store.default_name(noun, verb, str(facts["model"]), fingerprint)
    path = Path(keep.stores) / f"{name}.zarr"
    if keep.resume and not path.exists() and not path.with_name(f"{name}.zarr.partial").exists():
        raise RequestError(
            f"there is no run {name!r} to resume in {str(keep.stores)!r}; leave --resume out to "
            "start it."
        )
    recorder = store.RunRecorder(
        path,
        fingerprint=fingerprint,
        provenance={
            "analysis": request.name,
            "analysis_version": declared.version,
            **facts,
            "speed": request.speed,
            "inputs": inputs,
            "versions": store.versions(),
            "command": keep.command,
        },
        request=request.call,
        progress=keep.progress,
    )
    with recorder:
        reused = recorder.already_complete
        if not reused:
            _work(declared, request, recorder, keep, name)
        return replace(store.find_run(recorder.path), reused=reused)


def _work(
    declared: Analysis, request: Request, recorder: store.RunRecorder, keep: Keeping, name: str
) -> None:
    """Do what is not done yet and commit it."""
    # the batches of a run are those it was begun with, whatever size is asked for now
    begun = store.read_attrs(recorder.partial).get("speed", {})
    arguments = {**request.arguments, **{k: v for k, v in begun.items() if k in request.speed}}
    if "recorder" in declared.signature.parameters:
        arguments["recorder"] = recorder
    model = request.model
    elsewhere = model is not None and model.backend.name == "ndif"
    try:
        status = getattr(keep.progress, "status", None)
        with nullcontext() if model is None else model.backend.reporting(status, name):
            result = declared.function(**arguments)
        groups = split_used(_groups(result))
    except WorkError as error:
        # a server may answer another time; here the same batch fails again
        if not (elsewhere and isinstance(error, BackendError)):
            # what an analysis found in its numbers it finds again; a full disk has room another time
            found = type(error) is WorkError and not isinstance(error.__cause__, OSError)
            recorder.abandon(with_batches=found)
        raise
    except StoreError:
        raise  # of the folder, not of what was asked: it may go on later
    except RequestError as error:
        # prompts found unusable by measuring them stay so, and so do interventions that do not
        # fit: what was measured serves no other run. Here so does any request that is refused; a
        # server's refusals may pass, so what it has computed stays.
        hopeless = not elsewhere or isinstance(error, PromptError | InterventionError)
        recorder.abandon(with_batches=hopeless)
        raise
    # a result says what it was made from, so that it can be saved alone; a run says it itself
    known = store.read_attrs(recorder.partial)
    root = groups["/"].copy()
    root.attrs = {k: v for k, v in root.attrs.items() if k not in known}
    recorder.commit({**groups, "/": root}, keep=declared.keep)


def _groups(result: Any) -> dict[str, xr.Dataset]:
    """A result as the groups of a run, ``"/"`` being the root.

    Groups keep no labels of dims that they have only from the root.
    """
    if hasattr(result, "to_result"):
        result = result.to_result()
    if isinstance(result, xr.Dataset):
        return {"/": result}
    groups = {"/": result.to_dataset()}
    for node in result.subtree:
        if node.path != "/":
            group = node.to_dataset()
            dims = {dim for variable in group.data_vars.values() for dim in variable.dims}
            foreign = [name for name in group.coords if not set(group[name].dims) <= dims]
            groups[node.path.strip("/")] = group.drop_vars(foreign)
    return groups
