"""The options commands share, each defined once.

A parameter's name is the keyword of the library call it feeds, so a command can pass it on.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from refusal_nn.cli._config import read_config
from refusal_nn.cli._types import Folder, NewFile, Real, Whole

F = TypeVar("F", bound=Callable[..., Any])

BACKENDS = ("local", "ndif", "dry-run")
DTYPES = ("float32", "float64", "bfloat16", "float16")
STDOUT = "refusal_nn.stdout"
"""Key of the context's ``meta`` under which ``--json`` keeps the true standard output."""

PROMPTS = "Prompt set: a name (see `prompts list`) or a CSV, JSON or JSONL file."


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds several options, in this order on the help page."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def take(values: dict[str, Any], *options: Callable[[Any], Any]) -> dict[str, Any]:
    """Remove what some options add from a command's values and return it."""
    command = click.command()(together(*options)(lambda: None))
    return {str(option.name): values.pop(str(option.name)) for option in command.params}


def _use_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        # click ranks default_map below what was typed and above the option's own default
        ctx.default_map = {**(ctx.default_map or {}), **read_config(value, ctx.command)}


def _use_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        # whatever a library prints goes to stderr; print_json alone writes to the true stdout
        ctx.meta[STDOUT] = sys.stdout
        # the root's context is closed even where the rest cannot be parsed
        ctx.find_root().with_resource(contextlib.redirect_stdout(sys.stderr))


config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    callback=_use_config,
    is_eager=True,
    expose_value=False,
    metavar="FILE.yaml",
    help="Read options from a YAML file, by the same names; options given here win.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_use_json,
    is_eager=True,
    expose_value=False,
    help="Print one JSON document on stdout, and nothing else there.",
)

stores_option = click.option(
    "--stores",
    type=Folder(),
    default="stores",
    show_default=True,
    metavar="DIR",
    help="Folder of runs.",
)

seed_option = click.option(
    "--seed",
    type=Whole(min=0, largest=2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of every draw.",
)

batch_size_option = click.option(
    "--batch-size",
    type=Whole(min=1),
    metavar="N",
    help="Rows in one forward pass: speed and memory, not results. Default: by the model's width.",
)


model_option = partial(
    click.option,
    "--model",
    metavar="MODEL",
    help="Embedded name (see `models list`), folder or hub id.",
)
"""``--model``; takes what else :func:`click.option` does."""

output_option = partial(
    click.option,
    "--output",
    type=NewFile(),
    metavar="FILE",
)
"""``--output``; takes what else :func:`click.option` does."""

host_option = together(
    click.option(
        "--host", metavar="URL", help="NDIF server; default: NDIF_HOST or nnsight's own. [ndif]"
    ),
    click.option(
        "--plain-http",
        is_flag=True,
        help="Let the access key go over http to a server that is not on this machine. [ndif]",
    ),
)

_template_option = click.option(
    "--chat-template",
    metavar="FILE|raw",
    help="Jinja chat template to use instead of the tokenizer's own; raw: no template.",
)
_trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Allow code from the model's repository to run."
)
_server_options = together(
    host_option,
    click.option(
        "--deadline",
        type=Real(0, min_open=True, largest=1e8),
        metavar="SECONDS",
        help="Give up when no job gave news for so long; default 1800. [ndif]",
    ),
    click.option(
        "--detach",
        is_flag=True,
        help="Submit the jobs and leave; `runs resume` collects them. [ndif]",
    ),
)
_device_option = click.option(
    "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or auto (all GPUs)."
)

_revision_option = click.option(
    "--revision", metavar="REV", help="Branch, tag or commit of a hub model."
)

loading_options = together(
    _revision_option,
    _template_option,
    _trust_option,
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="local",
        show_default=True,
        help="Where the model runs. ndif: on an NDIF server, key in NDIF_API_KEY; dry-run: serialised, "
        "in a process without this package.",
    ),
    _server_options,
    _device_option,
    click.option("--dtype", type=click.Choice(DTYPES), help="Default: the checkpoint's own."),
)
"""How a model is loaded: the keywords of :func:`refusal_nn.load_model`."""

again_options = together(
    model_option(
        help="Where the model is now; needed where it was a folder, which runs do not record."
    ),
    _revision_option,
    _template_option,
    _trust_option,
    _server_options,
    _device_option,
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="RUN",
        help="A run that this one goes on from, where it is neither in --stores nor beside it; "
        "repeatable.",
    ),
)
"""What a run does not say, or may not say, when it is continued or made again."""

run_options = together(
    stores_option,
    click.option("--name", metavar="NAME", help="Name of the run; default: made from the request."),
    click.option("--resume", is_flag=True, help="Continue a partial run of the same request."),
)
"""Where results are kept."""


def take_loading(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the loading options from a command's values and return them for ``load_model``."""
    return with_limits(take(values, loading_options))


def with_limits(loading: dict[str, Any]) -> dict[str, Any]:
    """Loading options as keywords of ``load_model``: the deadline is one of its limits."""
    deadline = loading.pop("deadline")
    if deadline is not None:
        from refusal_nn.backends import Limits

        loading["limits"] = Limits(deadline=deadline)
    return loading
