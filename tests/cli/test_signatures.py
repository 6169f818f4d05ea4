"""An option stands once: commands have the arguments, defaults and choices of their functions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import refusal_nn
from refusal_nn._analyses import OURS, declared, function_at
from refusal_nn._signature import REQUIRED, read_signature
from refusal_nn.attribution import _attribute
from refusal_nn.circuits._ablation import ABLATIONS
from refusal_nn.circuits._discover import RANKINGS, RULES
from refusal_nn.circuits._nulls import NULLS
from refusal_nn.cli import cli
from refusal_nn.cli._contrast import METRICS
from refusal_nn.contrasts._metric import KINDS
from refusal_nn.directions import _extract
from refusal_nn.models.sites import STREAM_SITES
from refusal_nn.patching._exchange import INTERCHANGES
from refusal_nn.patching._refusal_heads import CORRECTIONS
from refusal_nn.runs import declared_by

ROOT = Path(refusal_nn.__file__).parents[1]
NO_COMMAND = ("responses-evaluate", "attribute-edges", "attribute-nodes")
"""Analyses without a command of their own name."""

COMMANDS = {
    **{name: name.replace("-", " ") for name in OURS if name not in NO_COMMAND},
    **dict.fromkeys(("attribute-edges", "attribute-nodes"), "attribute"),
}
NOT_ARGUMENTS = {
    *("model", "revision", "chat_template", "trust_remote_code", "backend", "host", "deadline"),
    *("detach", "plain_http", "device", "dtype", "split", "refusal_tokens", "against", "direction"),
    *("top", "stores", "name", "resume", "config", "as_json", "metric", "pairs", "prompts"),
}
"""Options that name what is loaded, measured by, kept or shown."""


def command_of(name: str) -> click.Command:
    found: click.Command = cli
    for word in COMMANDS[name].split():
        assert isinstance(found, click.Group)
        below = found.get_command(click.Context(found), word)
        assert below is not None
        found = below
    return found


def options(command: click.Command) -> Iterator[click.Option]:
    return (p for p in command.params if isinstance(p, click.Option))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_of_a_command_is_that_of_its_function(name: str) -> None:
    parameters = inspect.signature(function_at(OURS[name])).parameters
    compared = 0
    for option in options(command_of(name)):
        if option.name in NOT_ARGUMENTS and option.name not in parameters:
            continue
        if option.name in NOT_ARGUMENTS and option.name != "refusal_tokens":
            continue
        assert option.name in parameters, f"{name} --{option.name} is no argument of its function"
        default = parameters[str(option.name)].default
        given = option.to_info_dict()["default"]
        if option.multiple:
            given, default = tuple(given or ()), tuple(default)
        assert given == default, f"{name} --{option.name}"
        compared += 1
    assert compared > 0


@pytest.mark.parametrize("name", OURS)
def test_what_is_read_from_the_text_is_what_python_sees(name: str) -> None:
    read, function = read_signature(OURS[name]), function_at(OURS[name])
    real = declared_by(function)
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("recorder", None)
    assert list(read.parameters) == list(parameters)
    for parameter in read.parameters.values():
        known = parameters[parameter.name].default
        wanted = REQUIRED if known is inspect.Parameter.empty else known
        assert parameter.default == wanted, parameter.name
        assert parameter.annotation == parameters[parameter.name].annotation
    assert dict(read.runs) == dict(real.runs)
    assert read.section == real.section
    assert declared(name) == read
    verbs = {real.name.format(level=level) for level in ("edge", "node")}
    assert name in verbs


@pytest.mark.parametrize("name", COMMANDS)
def test_a_choice_of_a_command_is_one_its_documentation_names(name: str) -> None:
    read = read_signature(OURS[name])
    for option in options(command_of(name)):
        if option.name in NOT_ARGUMENTS or option.name not in read.parameters:
            continue
        said = read.parameters[option.name].choices
        more = {"none"} if option.name == "nulls" else set()  # a command's way to give no value
        if said or isinstance(option.type, click.Choice):
            assert isinstance(option.type, click.Choice), option.name
            assert set(option.type.choices) == {*said, *more}, option.name


@pytest.mark.parametrize(
    ("name", "documented"),
    [
        ("direction-extract", {"method": _extract.METHODS}),
        ("patch-positions", {"sites": STREAM_SITES, "interchange": INTERCHANGES}),
        ("patch-heads", {"correction": CORRECTIONS}),
        ("attribute-edges", {"method": _attribute.METHODS, "level": _attribute.LEVELS}),
        ("circuit-discover", {"rule": RULES, "ranking": RANKINGS, "ablation": ABLATIONS}),
        ("circuit-evaluate", {"ablation": ABLATIONS, "nulls": NULLS}),
        ("circuit-compare", {"ablation": ABLATIONS}),
    ],
)
def test_the_choices_that_are_documented_are_those_a_function_takes(
    name: str, documented: dict[str, tuple[str, ...]]
) -> None:
    parameters = read_signature(OURS[name]).parameters
    found = {p.name: set(p.choices) for p in parameters.values() if p.choices}
    assert found == {k: set(v) for k, v in documented.items()}


def test_the_metrics_of_commands_are_those_there_are() -> None:
    assert set(METRICS) == set(KINDS)


@pytest.mark.parametrize(
    "argv",
    [
        ["direction", "extract", "--method"],
        ["direction", "extract", "--split"],
        ["circuit", "evaluate", "RUN", "--split"],
        ["circuit", "compare", "RUN", "--split"],
        ["patch", "positions", "--site"],
        ["attribute", "--method"],
    ],
)
def test_a_typo_in_a_choice_is_found_before_anything_is_opened(argv: list[str]) -> None:
    result = CliRunner().invoke(cli, [*argv, "tset"])
    assert result.exit_code == 2
    assert f"Invalid value for '{argv[-1]}': 'tset' is not" in result.stderr


def defaults(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    """Every literal default of an argument, by the argument's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            named = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or None :]
            pairs = [*zip(named, arguments.defaults, strict=False)]
            pairs += [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
            for argument, default in pairs:
                if isinstance(default, ast.Constant):
                    yield argument.arg, default.value


def test_the_published_thresholds_stand_in_one_place() -> None:
    files = [*(ROOT / "refusal_nn").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    literal = [
        (path.name, name)
        for path in files
        if "cli" not in path.relative_to(ROOT).parts[1:]
        for name, value in defaults(ast.parse(path.read_text(encoding="utf-8")))
        if name in ("kl_max", "induce_min", "layer_fraction") and value is not None
    ]
    assert literal == []
    places = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if "KL_MAX = " in path.read_text(encoding="utf-8")
    ]
    assert set(places) == {"refusal_nn/directions/_thresholds.py"}


def commands(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from commands(below, f"{path} {name}".strip())


def test_every_command_takes_json() -> None:
    without = [path for path, c in commands(cli) if "as_json" not in {p.name for p in c.params}]
    assert without == []
