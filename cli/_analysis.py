"""The command of an analysis, made from its declaration: options, inputs, one call, one table."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn._signature import REQUIRED, Parameter, Signature, read_signature
from refusal_nn.cli._contrast import inputs_of, metric_of, metric_options, take_metric
from refusal_nn.cli._inputs import (
    integers,
    keeping,
    load_prompts_of,
    model_of,
    split_option,
)
from refusal_nn.cli._options import (
    PROMPTS,
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    model_option,
    run_options,
    seed_option,
    take,
    take_loading,
    together,
)
from refusal_nn.cli._output import Page, Table, show_run
from refusal_nn.cli._types import AnyReal, AnyWhole, Real, Whole

if TYPE_CHECKING:
    from refusal_nn.runs import Run

Decorator = Callable[[Any], Any]
Show = Callable[..., None]
"""``show(run, **own)`` prints a run; ``own`` are the options that are the command's alone."""

top_option = click.option(
    "--top", type=Whole(min=0), default=10, show_default=True, help="Rows to show."
)
_INPUT_MODEL = "Default: the model the input run was made with; a folder has to be given again."
_PAIRS = "Contrast pairs: a name or a CSV, JSON or JSONL file."
_LOADED = {
    "Prompts": {"metavar": "PROMPTS", "help": PROMPTS},
    "Pairs": {"metavar": "PAIRS", "help": _PAIRS},
}
_SHARED = {"batch_size": batch_size_option, "seed": seed_option}


class AnalysisCommand(Page):
    """The command of an analysis, which can also print a run that was made otherwise.

    Attributes
    ----------
    show : callable
    own : sequence of decorators
        Options of ``show`` alone.
    """

    show: Show
    own: Sequence[Decorator]

    def show_run(self, run: Run) -> None:
        """Print a run as the command would, with the defaults of its own options."""
        defaults = {str(p.name): p.get_default(click.get_current_context()) for p in self.params}
        self.show(run, **take(defaults, *self.own))


def show_as_command(run: Run) -> None:
    """Print a run as the command of its analysis does; sizes where there is none."""
    context = click.get_current_context().find_root()
    noun, _, verb = str(run.attrs["analysis"]).partition("-")
    assert isinstance(context.command, click.Group)
    found = context.command.get_command(context, noun)
    if isinstance(found, click.Group):
        found = found.get_command(context, verb)
    if isinstance(found, AnalysisCommand):
        found.show_run(run)
    else:
        show_sizes(run)


def analysis_command(
    target: str,
    name: str,
    *,
    group: click.Group | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    hidden: Sequence[str] = (),
    own: Sequence[Decorator] = (),
    prepare: Callable[[dict[str, Any]], None] | None = None,
    text: str = "",
) -> Callable[[Show], click.Command]:
    """Make the decorated function, which prints a run, the command of an analysis.

    The analysis is not imported before the command runs: its options, their order, defaults, types,
    choices, ranges and help are read from its signature and the first sentences of its documentation.

    Parameters
    ----------
    target : str
        ``module:function``.
    name : str
        The verb.
    group : click.Group, optional
        The noun it is added to.
    options : mapping, optional
        What :func:`click.option` is told of an argument beyond that; ``flag`` spells one otherwise.
    hidden : sequence of str
        Arguments that are no options.
    own : sequence of decorators
        Options of the command alone, given to the decorated function.
    prepare : callable, optional
        Given the values before anything is loaded; may change or refuse them.
    text : str
        Help text; default the decorated function's.
    """
    signature = read_signature(target)

    def decorate(show: Show) -> click.Command:
        def run(stores: Path, name: str | None, resume: bool, **values: Any) -> None:
            mine = take(values, *own)
            if prepare is not None:
                prepare(values)
            show(_record(signature, values, stores, name, resume), **mine)

        decorators = _decorators(signature, options or {}, hidden, own)
        command = click.command(name, AnalysisCommand, help=text or inspect.getdoc(show))
        made = command(together(*decorators)(run))
        made.show, made.own = show, own
        if group is not None:
            group.add_command(made)
        return made

    return decorate


def _decorators(
    signature: Signature,
    options: Mapping[str, Mapping[str, Any]],
    hidden: Sequence[str],
    own: Sequence[Decorator],
) -> list[Decorator]:
    """The arguments and options of a command, in the order of its help page."""
    parameters = signature.parameters
    out: list[Decorator] = []
    for name in signature.runs:
        many = "Sequence" in parameters[name].annotation
        out.append(click.argument(name, nargs=-1 if many else 1, required=True))
    if "model" in parameters:
        known = {"help": _INPUT_MODEL} if signature.runs else {"required": True}
        out += [model_option(**known), loading_options]
    plain: list[Decorator] = []
    for name, parameter in parameters.items():
        kind = _kind(parameter)
        if kind != "given" and name not in (*signature.runs, *hidden):
            option = _option(parameter, {**_LOADED.get(kind, {}), **options.get(name, {})})
            (out if kind in _LOADED else plain).append(option)
        if name in signature.splits:
            out.append(split_option(default=signature.splits[name]))
    out += plain
    if "metric" in parameters:
        out.append(metric_options)
    out += [*own, *(option for name, option in _SHARED.items() if name in parameters)]
    return [*out, run_options, config_option, json_option]


def _kind(parameter: Parameter) -> str:
    """What an argument is to a command: ``Prompts``, ``Pairs``, ``given`` in another way, or plain."""
    for kind in _LOADED:
        if kind in parameter.annotation:
            return kind
    return "given" if parameter.name in ("model", "metric", *_SHARED) else ""


def _option(parameter: Parameter, more: Mapping[str, Any]) -> Decorator:
    """The option of an argument; ``more`` is said of it beyond its signature and documentation."""
    flag = f"--{parameter.name.replace('_', '-')}"
    kind, default = parameter.annotation.removesuffix(" | None"), parameter.default
    told: dict[str, Any] = {"help": parameter.summary, "show_default": default is not None}
    told |= {"required": True} if default is REQUIRED else {"default": default}
    if parameter.choices:
        told["type"] = click.Choice(parameter.choices)
    elif parameter.bounds is not None:
        told["type"] = _range(kind, *parameter.bounds)
    if kind == "bool" and default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    elif kind == "bool":
        told["is_flag"] = True
    elif kind.startswith(("Sequence[str]", "Mapping")):
        told["multiple"] = True
    elif kind.startswith("Sequence["):
        told["metavar"] = "LIST"
    else:
        told.setdefault("type", {"int": AnyWhole(), "float": AnyReal()}.get(kind, str))
    told |= more
    if "default" in more:
        told |= {"required": False, "show_default": True}
    return click.option(told.pop("flag", flag), parameter.name, **told)


def _range(kind: str, left: str, low: str, high: str, right: str) -> click.ParamType:
    """The numbers of a documented interval."""
    largest = None if high == "inf" else ast.literal_eval(high)
    number = Whole if kind == "int" else Real
    return number(ast.literal_eval(low), largest, min_open=left == "(", max_open=right == ")")


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
    measured = False
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
        elif _kind(parameter) in _LOADED:
            value = load_prompts_of(_kind(parameter), value, split)
            measured = measured or bool(value)
        elif "Sequence[int]" in parameter.annotation and "str" not in parameter.annotation:
            value = integers(value, parameter.name)
        arguments[parameter.name] = value
    made_from = [] if asked is None else inputs_of(asked, stores)
    if "model" in signature.parameters:
        optional = signature.parameters["model"].default is None
        needless = optional and not measured and model_name is None
        arguments["model"] = None if needless else model_of(sources, model_name, loading)
    if asked is not None:
        arguments["metric"] = metric_of(asked, arguments["model"], made_from)
    with keeping(stores, name, resume) as where:
        return record(function_at(signature.target), keep=where, made_from=made_from, **arguments)


def show_sizes(run: Run, *attrs: str) -> None:
    """Print what a run holds: some of its attrs, and the sizes of its root."""
    sizes = {str(k): int(v) for k, v in run.tree.to_dataset().sizes.items()}
    shown = {key: run.attrs[key] for key in attrs}
    rows = {"model": run.attrs["model"], **shown, **sizes}
    table = Table([(k, str(v)) for k, v in rows.items()], ["property", "value"])
    show_run(run, {"sizes": sizes, **shown}, table)
