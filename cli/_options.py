"""The options commands share, each defined once.

A parameter's name is the keyword of the library call it feeds, so a command can pass it on.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from refusal_nn.errors import RequestError

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


def read_config(path: str, command: click.Command) -> dict[str, Any]:
    """Option values from a YAML file, keyed by parameter name.

    Parameters
    ----------
    path : str
        A YAML mapping from long option names (``batch-size`` or ``batch_size``) to values.
    command : click.Command
        Whose options are allowed.

    Returns
    -------
    dict
        Strings, or lists of strings for options that may be repeated; click converts and checks
        them as if they had been typed.

    Raises
    ------
    RequestError
        If the file is not a mapping, names an option the command does not have (the closest one is
        suggested), or gives a value of the wrong shape.
    """
    import yaml

    name = Path(path).name
    try:
        # every scalar stays the text that was written: 1e-3 and `no` mean what they look like
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"config file {name!r} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"config file {name!r} is not valid YAML: {reason}.") from error
    if data in ("", None):
        return {}
    if not isinstance(data, dict):
        raise RequestError(
            f"config file {name!r} holds a {type(data).__name__}; write one `option: value` a line."
        )
    options = {
        option.lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name != "config"
        for option in parameter.opts
        if option.startswith("--")
    }
    values: dict[str, Any] = {}
    for key, value in data.items():
        option = str(key).lstrip("-").replace("_", "-")
        if option not in options:
            close = difflib.get_close_matches(option, options, n=1, cutoff=0.0)
            raise RequestError(
                f"config file {name!r} has unknown option {str(key)!r}; did you mean {close[0]!r}? "
                f"Options here: {', '.join(sorted(options))}."
            )
        parameter = options[option]
        assert parameter.name is not None
        many = parameter.multiple or parameter.nargs != 1
        if isinstance(value, list) and many and all(isinstance(item, str) for item in value):
            values[parameter.name] = value
        elif isinstance(value, str) and value:
            values[parameter.name] = [value] if parameter.multiple else value
        else:
            wanted = "one value or a list of values" if many else "one value"
            raise RequestError(f"config file {name!r}: option {option!r} takes {wanted}.")
    return values


def _use_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None and not ctx.resilient_parsing:
        # click ranks default_map below what was typed and above the option's own default
        ctx.default_map = {**(ctx.default_map or {}), **read_config(value, ctx.command)}


def _use_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        # whatever a library prints goes to stderr; print_json alone writes to the true stdout
        ctx.meta[STDOUT] = sys.stdout
        ctx.with_resource(contextlib.redirect_stdout(sys.stderr))


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
    expose_value=False,
    help="Print one JSON document on stdout, and nothing else there.",
)

stores_option = click.option(
    "--stores",
    type=click.Path(file_okay=False, path_type=Path),
    default="stores",
    show_default=True,
    metavar="DIR",
    help="Folder of runs.",
)

seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every draw."
)

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
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
    type=click.Path(dir_okay=False, path_type=Path),
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
        type=click.FloatRange(0, min_open=True),
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

loading_options = together(
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model."),
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
    _template_option,
    _trust_option,
    _server_options,
    _device_option,
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="RUN",
        help="A run that this one goes on from, where it is not in --stores; repeatable.",
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
