"""The command line: parse, call the library, print. No logic.

Nothing heavy is imported here or at the top of a subcommand's file, so that ``refusal-nn --help``
answers at once; a command imports what it needs inside its function.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any

import click

from refusal_nn import __version__
from refusal_nn.cli._others import OtherNoun, other_nouns, refuse_verb, with_others
from refusal_nn.cli._output import show
from refusal_nn.cli._request import ARGV
from refusal_nn.errors import Detached, RefusalNNError, RequestError

NOUNS = (
    "demo",
    "models",
    "prompts",
    "direction",
    "patch",
    "attribute",
    "circuit",
    "runs",
    "remote",
    "report",
)
"""Subcommands in the order of the help page; each is the public name ``command`` of its file."""

LOG_LEVELS = ("debug", "info", "warning", "error")


class Failed(click.ClickException):
    """The work failed."""

    exit_code = 1


class Wrong(click.ClickException):
    """The request was wrong."""

    exit_code = 2


class Interrupted(click.ClickException):
    """The user pressed Ctrl-C."""

    exit_code = 130


class Root(click.Group):
    """The nouns, imported by file name; the one place that maps errors to exit codes."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The root's context, which remembers what was typed."""
        typed = list(args)
        context = super().make_context(info_name, args, parent=parent, **extra)
        context.meta[ARGV] = typed
        return context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The nouns in the order of the help page; those of installed packages last."""
        return [*NOUNS, *(noun for noun in other_nouns() if noun not in NOUNS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a noun, imported now; None for an unknown noun."""
        if cmd_name not in NOUNS:
            return OtherNoun(cmd_name) if cmd_name in other_nouns() else None
        command = import_module(f"refusal_nn.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return with_others(cmd_name, command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and what follows it, which names no analysis where a noun has no verbs."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and rest:
            refuse_verb(name, command, rest[0])
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with errors of ours turned into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except Detached as left:
            document = {"run": left.run, "host": left.host, "jobs": left.jobs}
            return show(document, notices=[str(left)])
        except RefusalNNError as error:
            kind = Wrong if isinstance(error, RequestError) else Failed
            raise kind(str(error)) from error
        except KeyboardInterrupt as error:
            click.echo(err=True)
            raise Interrupted(
                "interrupted. Finished batches are kept: `refusal-nn runs list` shows a partial "
                "run and `refusal-nn runs resume NAME` continues it."
            ) from error


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="refusal-nn")
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="warning",
    show_default=True,
    help="Least severe message of the program's log to show, on stderr.",
)
def cli(log_level: str) -> None:
    """Find, test and store the mechanisms behind refusal in chat language models.

    Results go to stdout, notices and progress to stderr. Exit code 0: done; 1: the work failed;
    2: the request was wrong.
    """
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("refusal_nn").setLevel(log_level.upper())


def main() -> None:
    """Run the command line; the console script and ``python -m refusal_nn``."""
    cli(prog_name="refusal-nn")
