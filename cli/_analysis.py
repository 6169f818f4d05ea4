"""The command of an analysis, made from its declaration: options, inputs, one call, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn._signature import REQUIRED, Parameter, Signature, read_signature
from refusal_nn.cli._contrast import metric_options, take_metric
from refusal_nn.cli._inputs import (
    input_model_option,
    integers,
    keeping,
    load_prompts_of,
    model_of,
    split_option,
)
from refusal_nn.cli._options import (
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    model_option,
    prompts_option,
    run_options,
    seed_option,
    take_loading,
    together,
)
from refusal_nn.cli._output import notice_run, print_json, print_table

if TYPE_CHECKING:
    from refusal_nn.runs import Run

Decorator = Callable[[Any], Any]
Show = Callable[..., None]
"""``show(run, as_json, **own)`` prints a run; ``own`` are the options that are the command's alone."""

PAIRS = "Contrast pairs: a name or a CSV, JSON or JSONL file."
top_option = click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, help="Rows to show."
)
_SHARED = {"batch_size": batch_size_option, "seed": seed_option}
_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}


def analysis_command(
    target: str,
    name: str,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    own: Sequence[Decorator] = (),
    prepare: Callable[[dict[str, Any]], None] | None = None,
    show: Show | None = None,
    text: str = "",
) -> click.Command:
    """The command of an analysis, whose function is not imported before the command runs.

    Defaults are those of the function's signature; so are types and choices unless said otherwise.

    Parameters
    ----------
    target : str
        ``module:function``.
    name : str
        The verb.
    options : mapping, optional
        Arguments that are options, in this order, each with what :func:`click.option` is told beyond
        what the signature says; ``flag`` spells one otherwise. Default: every argument, with the first
        sentence of its documentation.
    own : sequence of decorators
        Options of the command alone, given to ``show``.
    prepare : callable, optional
        Given the values before anything is loaded; may change or refuse them.
    show : callable, optional
        Prints the run; default the sizes of its root.
    text : str
        Help text; default the summary of the function.
    """
    signature = read_signature(target)

    def run(stores: Path, name: str | None, resume: bool, as_json: bool, **values: Any) -> None:
        mine = {k: values.pop(k) for k in _names(own)}
        if prepare is not None:
            prepare(values)
        made = _record(signature, values, stores, name, resume)
        (show or _sizes)(made, as_json, **mine)

    decorated = together(*_decorators(signature, options, own))(run)
    return click.command(name=name, help=text or signature.summary)(decorated)


def _decorators(
    signature: Signature, options: Mapping[str, Mapping[str, Any]] | None, own: Sequence[Decorator]
) -> list[Decorator]:
    """The arguments and options of a command, in the order of its help page."""
    parameters = signature.parameters
    said = options or {}
    out: list[Decorator] = []
    for name in signature.runs:
        many = "Sequence" in parameters[name].annotation
        out.append(click.argument(name, nargs=-1 if many else 1, required=True))
    if "model" in parameters:
        out += [input_model_option if signature.runs else model_option(), loading_options]
    for name, parameter in parameters.items():
        if _kind(parameter) == "Prompts":
            out.append(prompts_option())
        elif _kind(parameter) == "Pairs":
            out.append(_pairs_option(parameter, said.get(name, {})))
        if name in signature.splits:
            out.append(split_option(signature.splits[name]))
    for name in options if options is not None else parameters:
        if name not in signature.runs and _kind(parameters[name]) == "":
            out.append(_option(parameters[name], said.get(name, {})))
    if "metric" in parameters:
        out.append(metric_options)
    out += [*own, *(option for name, option in _SHARED.items() if name in parameters)]
    return [*out, run_options, config_option, json_option]


def _kind(parameter: Parameter) -> str:
    """What an argument is to a command: ``Prompts``, ``Pairs``, ``given`` in another way, or plain."""
    for kind in ("Prompts", "Pairs"):
        if kind in parameter.annotation:
            return kind
    return "given" if parameter.name in ("model", "metric", *_SHARED) else ""


def _pairs_option(parameter: Parameter, more: Mapping[str, Any]) -> Decorator:
    many = "Mapping" in parameter.annotation
    required = parameter.default is REQUIRED and "default" not in more
    told = {"metavar": "PAIRS", "help": PAIRS, "multiple": many, "required": required, **more}
    return click.option("--pairs", show_default=True, **told)


def _option(parameter: Parameter, more: Mapping[str, Any]) -> Decorator:
    """The option of a plain argument."""
    told = dict(more)
    flag = told.pop("flag", f"--{parameter.name.replace('_', '-')}")
    default = parameter.default
    kind = parameter.annotation.removesuffix(" | None")
    told.setdefault("help", parameter.summary)
    told |= {"required": True} if default is REQUIRED else {"default": default}
    if parameter.choices:
        told.setdefault("type", click.Choice(parameter.choices))
    if kind == "bool":
        if default is True:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        else:
            told |= {"is_flag": True}
            return click.option(flag, parameter.name, **told)
    elif kind.startswith("Sequence[str]"):
        told |= {"multiple": True}
    elif kind.startswith("Sequence["):
        told.setdefault("metavar", "LIST")
    else:
        told.setdefault("type", _TYPES.get(kind, str))
    return click.option(flag, parameter.name, show_default=default is not None, **told)


def _names(decorators: Sequence[Decorator]) -> list[str]:
    """Values that decorators add to a command."""
    command = click.command()(together(*decorators)(lambda: None))
    return [str(parameter.name) for parameter in command.params]


def _record(
    signature: Signature, values: dict[str, Any], stores: Path, name: str | None, resume: bool
) -> Run:
    """Load what was named, call the analysis, keep the run."""
    from refusal_nn._analyses import function_at
    from refusal_nn.runs import open_run, record

    asked = take_metric(values) if "metric" in signature.parameters else None
    loading = take_loading(values) if "model" in signature.parameters else {}
    model_name, split = values.pop("model", None), values.pop("split", "all")
    arguments: dict[str, Any] = {}
    sources: list[Run] = []
    for parameter in signature.parameters.values():
        if parameter.name not in values:
            continue
        value = values[parameter.name]
        if parameter.name in signature.runs:
            many = isinstance(value, tuple)
            wanted = signature.runs[parameter.name]
            opened = [open_run(stores, one, wanted) for one in (value if many else [value])]
            sources += opened
            value = opened if many else opened[0]
        elif _kind(parameter) in ("Prompts", "Pairs"):
            value = load_prompts_of(_kind(parameter), value, split)
        elif "Sequence[int]" in parameter.annotation and "str" not in parameter.annotation:
            value = integers(value, parameter.name)
        arguments[parameter.name] = value
    made_from = asked.inputs(stores) if asked is not None else ()
    if "model" in signature.parameters:
        arguments["model"] = _model(signature, arguments, model_name, loading, sources)
    if asked is not None:
        arguments["metric"] = asked.of(arguments["model"], made_from)
    with keeping(stores, name, resume) as where:
        return record(function_at(signature.target), keep=where, made_from=made_from, **arguments)


def _model(
    signature: Signature,
    arguments: Mapping[str, Any],
    name: str | None,
    loading: dict[str, Any],
    sources: Sequence[Run],
) -> Any:
    """The model named, or that of the first input; None where the analysis needs none now."""
    optional = signature.parameters["model"].default is None
    measured = any(
        arguments.get(p.name)
        for p in signature.parameters.values()
        if _kind(p) in ("Prompts", "Pairs")
    )
    if optional and not measured and name is None:
        return None
    if sources:
        return model_of(sources[0], name, loading)
    from refusal_nn.models import load_model

    return load_model(str(name), **loading)


def _sizes(run: Run, as_json: bool) -> None:
    show_sizes(run, as_json, ())


def show_sizes(run: Run, as_json: bool, attrs: Sequence[str]) -> None:
    """Print what a run holds: some of its attrs, and the sizes of its root."""
    sizes = {str(k): int(v) for k, v in run.tree.to_dataset().sizes.items()}
    shown = {key: run.attrs[key] for key in attrs}
    if as_json:
        print_json({"run": run.path, "reused": run.reused, "sizes": sizes, **shown})
        return
    rows = [("model", run.attrs["model"]), *shown.items(), *sizes.items()]
    print_table(["property", "value"], [(k, str(v)) for k, v in rows])
    notice_run(run)
