"""The call that a run records, made again: its analysis, with its arguments, checked one by one.

A run may be anybody's. It says which of the analyses that are installed it is of, by name, and gives
values; it cannot name code, a host, a folder or a file. What it leaves out, the user says.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_nn import store
from refusal_nn._analyses import function_at, targets
from refusal_nn._signature import REQUIRED, Parameter, Signature, read_signature
from refusal_nn.errors import InterventionError, PromptError, RequestError, StoreError
from refusal_nn.interventions import from_json
from refusal_nn.models import BACKENDS, DTYPES, EMBEDDED, Model, load_model
from refusal_nn.runs._analysis import declared_by
from refusal_nn.runs._call import FORMAT, RECORDABLE, SETS
from refusal_nn.runs._keeping import Keeping
from refusal_nn.runs._record import record
from refusal_nn.runs._results import open_run, same_model
from refusal_nn.store._attrs import canonical

if TYPE_CHECKING:
    from refusal_nn.store import Run

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[\w][\w./-]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")
_DEVICES = ("cpu", "cuda")


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
        ``name``, ``kind``, ``revision``, ``dtype``, ``device``, ``backend``, ``chat_template``.
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
        ``plain_http``, ``limits``, ``detach``; ``chat_template`` where it was a file; ``device`` where
        another of the same type is meant.

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
    if name is None:
        name = recorded_model(call.run, str(at["name"]), at["kind"])
    if at["chat_template"] == "file" and loading.get("chat_template") is None:
        raise RequestError(
            f"run {call.run!r} was made with a chat template from a file; pass it again with "
            "--chat-template FILE."
        )
    given = {k: v for k, v in loading.items() if v is not None}
    device = {"device": at["device"]} if at["device"] in _DEVICES else {}
    template = {"chat_template": "raw"} if at["chat_template"] == "raw" else {}
    known = {"revision": at["revision"], "dtype": at["dtype"], "backend": at["backend"]}
    model = load_model(name, **{**device, **template, **given, **known})
    same_model(call.run, store.read_attrs(call.path), model)
    return model


def recorded_model(run: str, name: str, kind: str = "") -> str:
    """The name by which a run's model is loaded again.

    Parameters
    ----------
    run : str
        For the message.
    name : str
        Attr ``model`` of the run.
    kind : str
        ``folder``, where the run says so.

    Raises
    ------
    RequestError
        If it was a folder, and none is called so here, or it is not the name of a model: a run never
        says where a folder is.
    """
    if name in EMBEDDED or (_PLAIN.fullmatch(name) and Path(name).is_dir()):
        return name  # a folder here that is called so; its weights are compared with the run's
    if kind == "folder" or not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise RequestError(
            f"run {run!r} was made with model folder {_short(name)}, and runs do not record where that "
            "lies; pass --model PATH."
        )
    return name


def repeat(
    call: Call, keep: Keeping, model: Model | None = None, inputs: Sequence[str | Path] = ()
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
        Such runs that lie elsewhere, or have another name now.

    Raises
    ------
    RequestError
        If a run that it goes on from is missing, or an argument is not one of the analysis.
    """
    found = _Inputs(call.run, Path(keep.stores), inputs)
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
                arguments[name] = _decoded(entry, parameter)
        except (_NotOneError, PromptError, InterventionError) as error:
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


class _NotOneError(ValueError):
    """A recorded value is not what its argument takes."""


class _Inputs:
    """The runs that a call goes on from, found by their hash."""

    def __init__(self, run: str, stores: Path, given: Sequence[str | Path]) -> None:
        self.run, self.stores = run, stores
        self.given = {found.hash: found for found in (open_run(stores, one) for one in given)}

    def find(self, entry: Mapping[str, str]) -> Run:
        """The run of a name and hash."""
        if entry["hash"] in self.given:
            return self.given[entry["hash"]]
        name = entry["run"]
        said = f"run {self.run!r} goes on from run {name!r}"
        place = self.stores / f"{name}.zarr"
        if not place.is_dir():
            raise RequestError(
                f"{said}, which is not in {str(self.stores)!r}; put it there, or name it with --input."
            )
        found = open_run(self.stores, place)
        if found.hash != entry["hash"]:
            raise RequestError(
                f"{said}, but the run of that name in {str(self.stores)!r} is another one; name the "
                "right one with --input."
            )
        return found


def _runs(entry: Any, found: _Inputs) -> Run | list[Run]:
    if isinstance(entry, dict) and set(entry) == {"runs"} and _is_entries(entry["runs"]):
        return [found.find(one) for one in entry["runs"]]
    if isinstance(entry, dict) and set(entry) == {"run"} and _is_entries([entry["run"]]):
        return found.find(entry["run"])
    raise _NotOneError("it does not name runs")


def _decoded(entry: Any, parameter: Parameter) -> Any:
    """An argument from its record, if it is of a kind and type that the analysis declares."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise _NotOneError
    ((kind, content),) = entry.items()
    annotation = parameter.annotation
    if kind == "value":
        if not fits(content, parameter):
            raise _NotOneError
        return content
    if kind == "each" and "Mapping" in annotation and isinstance(content, dict):
        return {key: _decoded(one, parameter) for key, one in content.items()}
    if kind == "interventions" and "Intervention" in annotation:
        return from_json(canonical(content))
    if kind in SETS and SETS[kind].__name__ in annotation:
        return _rows(SETS[kind], content)
    if kind in RECORDABLE and RECORDABLE[kind].__name__ in annotation:
        try:
            return RECORDABLE[kind].from_attrs(content)
        except (KeyError, TypeError, ValueError, AttributeError, RequestError) as error:
            raise _NotOneError(f"not a {RECORDABLE[kind].__name__}") from error
    raise _NotOneError


def _rows(made: Callable[..., Any], content: Any) -> Any:
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not isinstance(content.get("name"), str):
        raise _NotOneError("it holds no rows")
    for row in rows:
        texts = row.values() if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise _NotOneError("a row is not one of texts")
    return made.from_rows(rows, name=content["name"])  # type: ignore[attr-defined]


def fits(value: Any, parameter: Parameter) -> bool:
    """Whether a plain value is of an argument's declared type, one of its choices, within its bounds."""
    if value is None or value == parameter.default:
        return value == parameter.default or _is_of(value, _parsed(parameter.annotation))
    if not _is_of(value, _parsed(parameter.annotation)):
        return False
    if parameter.choices and isinstance(value, str):
        return value in parameter.choices
    if parameter.bounds is not None and isinstance(value, int | float):
        left, low, high, right = parameter.bounds
        above = value > float(low) if left == "(" else value >= float(low)
        return above and (value < float(high) if right == ")" else value <= float(high))
    return True


def _parsed(annotation: str) -> ast.expr:
    return ast.parse(annotation or "None", mode="eval").body


def _is_of(value: Any, kind: ast.expr) -> bool:
    """Whether plain data are of an annotation that plain data can be of."""
    match kind:
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_of(value, left) or _is_of(value, right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return value in ast.literal_eval(ast.unparse(choices))
        case ast.Subscript(value=ast.Name(id="Sequence" | "list" | "tuple"), slice=inner):
            of = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return isinstance(value, list) and all(_is_of(one, of) for one in value)
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict"), slice=ast.Tuple(elts=[_, of])):
            return isinstance(value, dict) and all(_is_of(one, of) for one in value.values())
    # of any other type, an empty list or mapping is all that plain data can be
    return value in ([], {})


def _is_entries(found: Any) -> bool:
    """Whether these are names and hashes of runs."""
    return isinstance(found, list) and all(
        isinstance(entry, dict)
        and set(entry) == {"run", "hash"}
        and all(isinstance(value, str) for value in entry.values())
        and _PLAIN.fullmatch(entry["run"])
        and _HASH.fullmatch(entry["hash"])
        for entry in found
    )


def _is_model(found: Any) -> bool:
    """Whether this says how a model is loaded, and nothing that only a user may say."""
    keys = {"name", "kind", "revision", "dtype", "device", "backend", "chat_template"}
    if not isinstance(found, dict) or set(found) != keys:
        return False
    texts = all(
        isinstance(v, str) for k, v in found.items() if k not in ("revision", "chat_template")
    )
    return (
        texts
        and found["kind"] in ("embedded", "folder", "hub")
        and found["dtype"] in DTYPES
        and found["backend"] in BACKENDS
        and found["chat_template"] in (None, "raw", "file")
        and (
            found["revision"] is None
            or (isinstance(found["revision"], str) and bool(_REVISION.fullmatch(found["revision"])))
        )
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
    # what stands in a file is shown only if it is a command of the analysis that the run is of
    if noun in words[1:4] and (verb in words[2:5] or noun == "attribute"):
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
