"""What was typed: recorded with a run, so that it can be continued or made again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from refusal_nn.errors import RequestError

ARGV = "refusal_nn.argv"
"""Key of the context's ``meta`` under which the root keeps its arguments."""


def request() -> dict[str, Any]:
    """The running command as ``runs resume`` needs it: for a partial run, removed at commit.

    Raises
    ------
    RequestError
        If the server's address is not one.

    Returns
    -------
    dict
        ``argv``, the arguments after the program's name, ``cwd``, where they were typed, and of a
        command with ``--backend ndif`` ``host``, the server meant: the environment that named it may
        name another one, which must not be given the key, when the run is continued.
    """
    context = click.get_current_context()
    found = {"argv": list(context.meta[ARGV]), "cwd": str(Path.cwd())}
    if context.params.get("backend") == "ndif":
        from refusal_nn.backends import Service

        found["host"] = Service.connect(context.params.get("host")).host
    return found


def command_line() -> str:
    """The running command for a run's provenance: absolute paths cut short, keys hidden."""
    from refusal_nn import store

    return store.command_line(["refusal-nn", *click.get_current_context().meta[ARGV]])


def invoke(argv: Sequence[str], *, cwd: str | None = None) -> None:
    """Run a recorded command inside this one, where it was typed.

    Parameters
    ----------
    argv : sequence of str
        Arguments after the program's name.
    cwd : str, optional
        Folder to run in, so that relative paths mean what they meant; default the current one.

    Raises
    ------
    RequestError
        If `cwd` is gone.
    click.exceptions.Exit
        With the command's exit code, if it is not 0.
    """
    root = click.get_current_context().find_root().command
    if cwd is not None and not os.access(cwd, os.X_OK):
        raise RequestError(
            f"the folder the run was started in, {cwd!r}, is gone; run the command again where its "
            "files are."
        )
    with contextlib.chdir(cwd) if cwd is not None else contextlib.nullcontext():
        code = root.main(args=list(argv), prog_name="refusal-nn", standalone_mode=False)
    if isinstance(code, int) and code:
        raise click.exceptions.Exit(code)
