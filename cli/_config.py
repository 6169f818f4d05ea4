"""``--config``: option values from a YAML file, which is data and decides nothing a user must mean."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from refusal_nn._files import read_text
from refusal_nn.cli._words import fault
from refusal_nn.errors import RequestError

TYPED_ONLY = ("trust-remote-code", "plain-http", "overwrite", "yes")
"""What a config file may not say."""

_BYTES = 1 << 20
_DEPTH = 8


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
        suggested), twice, or that must be typed, or gives a value of the wrong shape.
    """
    file = f"config file {Path(path).name!r}"
    options = {
        option.lstrip("-"): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name != "config"
        for option in parameter.opts
        if option.startswith("--")
    }
    values: dict[str, Any] = {}
    for key, value in _read_yaml(path, file):
        option = str(key).lstrip("-").replace("_", "-")
        if option not in options:
            close = difflib.get_close_matches(option, options, n=1, cutoff=0.0)
            raise RequestError(
                f"{file} has unknown option {str(key)!r}; did you mean {close[0]!r}? "
                f"Options here: {', '.join(sorted(options))}."
            )
        if option in TYPED_ONLY:
            raise RequestError(
                f"{file} asks for {option!r}, which no file may decide; leave it out, and type "
                f"--{option} if you want it."
            )
        parameter = options[option]
        assert parameter.name is not None
        if parameter.name in values:
            raise RequestError(f"{file} has option {option!r} twice; leave one of them.")
        many = parameter.multiple or parameter.nargs != 1
        if isinstance(value, list) and many and all(isinstance(item, str) for item in value):
            values[parameter.name] = value
        elif isinstance(value, str) and value:
            values[parameter.name] = [value] if parameter.multiple else value
        else:
            wanted = "one value or a list of values" if many else "one value"
            raise RequestError(f"{file}: option {option!r} takes {wanted}.")
        for word in values[parameter.name] if many else [value]:
            if (wrong := fault(word)) is not None:
                raise RequestError(
                    f"{file}: the value of option {option!r} {wrong}; write it without."
                )
    return values


def _read_yaml(path: str, file: str) -> list[tuple[str, Any]]:
    """The pairs of a mapping, every scalar as the text that was written: `1e-3`, `no`.

    Refuses what a list of options does not need and what can make a reader work without end: depth,
    anchors, tags.
    """
    import yaml

    wanted = "write one `option: value` a line"
    text = read_text(path, what="config file", limit=_BYTES)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                raise RequestError(f"{file} is nested too deeply; {wanted}.")
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise RequestError(f"{file} has an anchor, an alias or a tag; write plain values.")
        root: Any = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{file} is not valid YAML: {reason}.") from error
    if root is None or root.value == "":
        return []
    if not isinstance(root, yaml.MappingNode):
        kind = "list" if isinstance(root, yaml.SequenceNode) else "text"
        raise RequestError(f"{file} holds a {kind}; {wanted}.")
    if not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
        raise RequestError(f"{file} has a key that is no word; {wanted}.")
    built = yaml.BaseLoader("").construct_document
    return [(key.value, built(value)) for key, value in root.value]
