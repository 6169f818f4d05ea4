"""The call that a run records, made again: its analysis, with its arguments, checked one by one.

A run may be anybody's. It says which of the analyses that are installed it is of, by name, and gives
values; it cannot name code, a host, a folder or a file. What it leaves out, the user says.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from refusal_nn import store
from refusal_nn._analyses import function_at, targets
from refusal_nn._files import is_hub_id
from refusal_nn._signature import REQUIRED, Signature, read_signature
from refusal_nn.errors import InterventionError, PromptError, RequestError, StoreError
from refusal_nn.models import BACKENDS, DTYPES, EMBEDDED, Model, load_model
from refusal_nn.runs._analysis import declared_by
from refusal_nn.runs._call import FORMAT
from refusal_nn.runs._keeping import NAME, Keeping
from refusal_nn.runs._record import record
from refusal_nn.runs._results import open_run, same_model
from refusal_nn.runs._values import NotOneError, decoded

if TYPE_CHECKING:
    from refusal_nn.store import Run

_REVISION = re.compile(r"[\w][\w./-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_DEVICES = ("cpu", "cuda")
_ATTENTION = ("sdpa", "eager")
_OR_NONE = ("revision", "chat_template", "attn_implementation")


@dataclass(frozen=True)
class Call:
    """A recorded call, its form checked.

    Attributes
    ----------
    run : str
        Name of the run that records it.
    path : Path
    analysis : str
    signature : Signature
        Of the analysis, which is installed.
    arguments : mapping
        As :func:`refusal_nn.runs._call.encoded`.
    model : mapping or None
        ``name``, ``kind``, ``revision``, ``dtype``, ``device``, ``backend``, ``chat_template``,
        ``attn_implementation``.
    made_from : sequence
        ``{"run", "hash"}`` of results that arguments were made from.
    """

    run: str
    path: Path
    analysis: str
    signature: Signature
    arguments: Mapping[str, Any]
    model: Mapping[str, Any] | None
    made_from: Sequence[Mapping[str, str]]

    @property
    def backend(self) -> str:
        """Where the model ran; empty without a model."""
        return "" if self.model is None else str(self.model["backend"])


def call_of(path: str | Path) -> Call:
    """The call that a run records.

    Parameters
    ----------
    path : str or Path
        A run, complete or partial, with or without its endings.

    Raises
    ------
    StoreError
        If there is no such run, or its record is not one.
    RequestError
        If it has none: it was made before runs had one, or with arguments that no record holds. The
        message says how to begin again.
    """
    run = store.find_run(path)
    document = store.request_of(run.path)
    if not document:
        raise RequestError(_without_record(run))
    what = f"run {run.name!r}: its record of the call"
    keys = ("analysis", "arguments", "model", "made_from", "unrecorded")
    if document.get("format") != FORMAT or not all(key in document for key in keys):
        raise StoreError(
            f"{what} is not of a form that this version reads; restore it from a copy."
        )
    analysis, arguments, model, made_from, lacking = (document[key] for key in keys)
    if not isinstance(analysis, str) or analysis not in targets():
        raise RequestError(
            f"{what} names the analysis {_short(analysis)}, which no installed package has; install "
            "the package that made it, or run the code that made it again."
        )
    if lacking:
        raise RequestError(
            f"run {run.name!r} was begun from Python with {_short(lacking)}, which no record holds; "
            "run the same code again."
        )
    if not _is_entries(made_from):
        raise StoreError(f"{what} does not say which runs it goes on from; restore it from a copy.")
    if not isinstance(arguments, dict) or not (model is None or _is_model(model)):
        raise StoreError(f"{what} is damaged (its arguments or model); restore it from a copy.")
    signature = read_signature(targets()[analysis])
    return Call(run.name, run.path, analysis, signature, arguments, model, made_from)


def load_again(call: Call, name: str | None = None, **loading: Any) -> Model | None:
    """The model of a recorded call; None where it was made without one.

    Parameters
    ----------
    call : Call
    name : str, optional
        Where the model is now; must be given where it was a folder.
    **loading
        Keywords of :func:`refusal_nn.load_model` that no run decides: ``trust_remote_code``, ``host``,
        ``plain_http``, ``limits``, ``detach``, ``revision``; ``chat_template`` where it was a file;
        ``device`` where another of the same type is meant; ``attn_implementation`` where it was neither
        ``sdpa`` nor ``eager``, the only ones that are taken from a run.

    Raises
    ------
    RequestError
        If something must be given, or the model is not the one the run was made with.
    ModelError
        If it cannot be loaded.
    """
    at = call.model
    if at is None:
        return None
    given = {k: v for k, v in loading.items() if v is not None}
    trusted = bool(given.get("trust_remote_code"))
    if name is None:
        name = recorded_model(call.run, str(at["name"]), at["kind"], trusted=trusted)
    if trusted and at["revision"] and "revision" not in given:
        raise RequestError(
            f"run {call.run!r} was made at revision {_short(at['revision'])}, and whose code "
            "--trust-remote-code runs is for you to say; name the revision with --revision."
        )
    if at["chat_template"] == "file" and "chat_template" not in given:
        raise RequestError(
            f"run {call.run!r} was made with a chat template from a file; pass it again with "
            "--chat-template FILE."
        )
    known = {"revision": at["revision"], "device": _device_of(call, given.get("device"))}
    if at["chat_template"] == "raw":
        known["chat_template"] = "raw"
    if at["backend"] != "ndif" and at["attn_implementation"] in _ATTENTION:
        known["attn_implementation"] = at["attn_implementation"]
    fixed = {"dtype": at["dtype"], "backend": at["backend"]}
    model = load_model(name, **{**known, **given, **fixed})
    same_model(call.run, store.read_attrs(call.path), model)
    return model


def _device_of(call: Call, asked: str | None) -> str | None:
    """The device to load on: as asked, else of the recorded type.

    Raises
    ------
    RequestError
        If a partial run would go on on a device of another type than it was begun on.
    """
    assert call.model is not None
    begun = call.model["device"]
    if begun not in _DEVICES:  # a server's
        return asked
    gpu = torch.cuda.is_available()
    kind = ("cuda" if gpu else "cpu") if asked == "auto" else (asked or begun).partition(":")[0]
    here = kind != "cuda" or gpu
    if call.path.name.endswith(".partial") and (kind != begun or not here):
        raise RequestError(
            f"run {call.run!r} was begun on {begun}, and its batches are only put together with others "
            f"from there; go on on a machine with {begun}, or begin it here under another name."
        )
    return asked or begun


def recorded_model(run: str, name: str, kind: str = "", *, trusted: bool = False) -> str:
    """The name by which a run's model is loaded again.

    Parameters
    ----------
    run : str
        For the message.
    name : str
        Attr ``model`` of the run.
    kind : str
        ``folder``, where the run says so.
    trusted : bool
        Code of the model's is to be run: whose it is, no run says.

    Raises
    ------
    RequestError
        If it was a folder, and none is called so here, or it is not the name of a model: a run never
        says where a folder is.
    """
    if name in EMBEDDED:
        return name
    if trusted:
        raise RequestError(
            f"run {run!r} was made with model {_short(name)}, and whose code --trust-remote-code runs is "
            "for you to say; name the model with --model."
        )
    if NAME.fullmatch(name) and Path(name).is_dir():
        return name  # a folder here that is called so; its weights are compared with the run's
    if kind != "folder" and is_hub_id(name):
        if not Path(name).exists():
            return name
        raise RequestError(
            f"run {run!r} was made with model {_short(name)} of the hub, and a folder here is called so, "
            "too; say which is meant with --model."
        )
    raise RequestError(
        f"run {run!r} was made with model folder {_short(name)}, and runs do not record where that "
        "lies; pass --model PATH."
    )


def repeat(
    call: Call,
    keep: Keeping,
    model: Model | None = None,
    inputs: Sequence[str | Path] = (),
    folders: Sequence[str | Path] = (),
) -> Run:
    """Make a recorded call again and keep it, or go on with it where it is partial.

    Parameters
    ----------
    call : Call
    keep : Keeping
        Its folder is where the runs are looked for that the call goes on from.
    model : Model, optional
        From :func:`load_again`.
    inputs : sequence of str or Path
        Such runs that lie elsewhere.
    folders : sequence of str or Path
        Folders where they are looked for, too.

    Raises
    ------
    RequestError
        If a run that it goes on from is missing, or an argument is not one of the analysis.
    """
    places = dict.fromkeys(map(Path, [*folders, keep.stores]))
    found = _Inputs(call.run, list(places), inputs)
    arguments: dict[str, Any] = {}
    if "model" in call.signature.parameters:
        arguments["model"] = model
    function = function_at(call.signature.target)
    for name, entry in call.arguments.items():
        parameter = call.signature.parameters.get(name)
        if parameter is None or name == "model":
            raise StoreError(f"run {call.run!r}: {call.analysis} has no argument {_short(name)}.")
        try:
            if name in call.signature.runs:
                arguments[name] = _runs(entry, found)
            else:
                arguments[name] = decoded(entry, parameter)
        except (NotOneError, PromptError, InterventionError) as error:
            reason = str(error).rstrip(".") or f"{_short(entry)} is not one"
            raise StoreError(
                f"run {call.run!r}: its record of argument {name!r} of {call.analysis} is wrong "
                f"({reason}); restore it from a copy, or make the run anew."
            ) from error
    if lacking := [
        name
        for name, parameter in call.signature.parameters.items()
        if parameter.default is REQUIRED and name not in arguments
    ]:
        raise StoreError(f"run {call.run!r}: its record lacks argument {lacking[0]!r}.")
    if declared_by(function).named(arguments) != call.analysis:
        raise StoreError(f"run {call.run!r}: its record is not of a call of {call.analysis}.")
    made_from = [found.find(entry) for entry in call.made_from]
    return record(function, keep=keep, made_from=made_from, **arguments)


class _Inputs:
    """The runs that a call goes on from, found by their hash."""

    def __init__(self, run: str, folders: Sequence[Path], given: Sequence[str | Path]) -> None:
        self.run, self.folders = run, folders
        self.given = {found.hash: found for found in (open_run(folders[0], one) for one in given)}

    def find(self, entry: Mapping[str, str]) -> Run:
        """The run of a name and hash, or of this hash under another name."""
        if entry["hash"] in self.given:
            return self.given[entry["hash"]]
        name = entry["run"]
        named = [folder / f"{name}.zarr" for folder in self.folders]
        for place in self._places(named):
            if place.is_dir() and _hash_at(place) == entry["hash"]:
                return open_run(place.parent, place)
        where = " or ".join(repr(str(folder)) for folder in self.folders)
        other = any(place.is_dir() for place in named)
        reason = (
            "the run of that name is another one, and no other there" if other else "no run there"
        )
        raise RequestError(
            f"run {self.run!r} goes on from run {name!r}, which is not in {where}: {reason} has its "
            "hash; put it there, or name it with --input."
        )

    def _places(self, named: Sequence[Path]) -> Iterator[Path]:
        yield from named
        yield from self._others  # only where no run of the name is the one

    @cached_property
    def _others(self) -> list[Path]:
        there = (store.open_runs(folder) for folder in self.folders if folder.is_dir())
        return [run.path for runs in there for run in runs if run.state == "complete"]


def _hash_at(place: Path) -> str:
    try:
        return store.find_run(place).hash
    except StoreError:
        return ""


def _runs(entry: Any, found: _Inputs) -> Run | list[Run]:
    if isinstance(entry, dict) and set(entry) == {"runs"} and _is_entries(entry["runs"]):
        return [found.find(one) for one in entry["runs"]]
    if isinstance(entry, dict) and set(entry) == {"run"} and _is_entries([entry["run"]]):
        return found.find(entry["run"])
    raise NotOneError("it does not name runs")


def _is_entries(found: Any) -> bool:
    """Whether these are names and hashes of runs."""
    return isinstance(found, list) and all(
        isinstance(entry, dict)
        and set(entry) == {"run", "hash"}
        and all(isinstance(value, str) for value in entry.values())
        and NAME.fullmatch(entry["run"])
        and _HASH.fullmatch(entry["hash"])
        for entry in found
    )


def _is_model(found: Any) -> bool:
    """Whether this says how a model is loaded, and nothing that only a user may say."""
    keys = {"name", "kind", "revision", "dtype", "device", "backend"}
    keys |= {"chat_template", "attn_implementation"}
    if not isinstance(found, dict) or set(found) != keys:
        return False
    texts = all(isinstance(v, str) or (v is None and k in _OR_NONE) for k, v in found.items())
    return (
        texts
        and found["kind"] in ("embedded", "folder", "hub")
        and found["dtype"] in DTYPES
        and found["backend"] in BACKENDS
        and found["chat_template"] in (None, "raw", "file")
        and (found["revision"] is None or bool(_REVISION.fullmatch(found["revision"])))
    )


def _without_record(run: Run) -> str:
    """Why a run without a record cannot be made again, and what to do instead."""
    analysis = run.attrs.get("analysis")
    partial = run.state == "partial"
    words = ["refusal-nn", *store.typed_before(run.path)] if partial else _words(run)
    said = f"run {run.name!r} records no call: it is of an earlier version, or was not made by one"
    if not isinstance(analysis, str) or analysis not in targets():
        return f"{said}; run the code that made it again."
    noun, _, verb = analysis.partition("-")
    if "demo" in words[:4]:
        return (
            f"run {run.name!r} is one of the four that `refusal-nn demo` made, and records no call; "
            f"repeat the demo in another folder (--stores DIR), or make this step with "
            f"`refusal-nn {noun} {verb}`."
        )
    begun = "begin" if partial else "make it"
    # what stands in a file is shown only if it is our command of the analysis that the run is of
    wanted = ["refusal-nn", *([noun] if noun == "attribute" else [noun, verb])]
    typed_only = ("--trust-remote-code", "--plain-http", "--host", "--yes", "--overwrite")
    if words[: len(wanted)] == wanted and not any(word.startswith(typed_only) for word in words):
        line = shlex.join(words)
        return f"{said}; {begun} again with the command it records, after reading it: `{line}`."
    return f"{said}; {begun} again with `refusal-nn {noun} {verb}`."


def _words(run: Run) -> list[str]:
    command = run.attrs.get("command")
    try:
        return shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return []


def _short(value: Any) -> str:
    listed = isinstance(value, list) and all(isinstance(one, str) for one in value)
    text = value if isinstance(value, str) else ", ".join(value) if listed else repr(value)
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
