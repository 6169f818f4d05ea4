"""The command line: parse, call the library, print. No logic.

Nothing heavy is imported here or at the top of a subcommand's file, so that ``refusal-nn --help``
answers at once; a command imports what it needs inside its function.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from refusal_nn import __version__
from refusal_nn._terminal import one_line, printable
from refusal_nn.cli import _signals
from refusal_nn.cli._ending import Ended, log_ending, wants_json
from refusal_nn.cli._options import STDOUT
from refusal_nn.cli._others import OtherNoun, other_nouns, refuse_verb, with_others
from refusal_nn.cli._output import PRINTED, Page, show
from refusal_nn.cli._request import ARGV
from refusal_nn.cli._words import check_words
from refusal_nn.errors import Detached, RefusalNNError

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


class Root(Page, click.Group):
    """The nouns, imported by file name; the one place that catches what ends a command."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program, on streams that write what they cannot encode as an escape."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **extra)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """The root's context, which remembers what was typed."""
        typed = list(args)
        try:
            check_words(typed)
            context = super().make_context(info_name, args, parent=parent, **extra)
        except (click.ClickException, RefusalNNError) as error:
            raise Ended(error, as_json=wants_json(self, None, typed)) from error
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
        """Run the command; an exception becomes a sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except Detached as left:
            document = {"run": left.run, "host": left.host, "jobs": left.jobs}
            return show(document, notices=[str(left)])
        except (Ended, click.exceptions.Exit, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            log_ending(error)
            if isinstance(error, KeyboardInterrupt) or _signals.terminated():
                # at the exit zarr's loop would complain of each write that is left
                logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
            asked = STDOUT in ctx.meta or wants_json(self, ctx, ctx.meta[ARGV])
            raise Ended(error, as_json=asked and PRINTED not in ctx.meta) from error


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("refusal_nn").setLevel(log_level.upper())


class _Plain(logging.Formatter):
    """A line a message, whatever it quotes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        return printable(super().formatException(ei))


class _Record(logging.LogRecord):
    """What other libraries log with handlers of their own, as a line that steers no terminal."""

    def getMessage(self) -> str:  # noqa: N802 - the library's name
        return one_line(super().getMessage())


def _warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    """A warning as a line, without the file of this machine it came from."""
    return f"{category.__name__}: {one_line(str(message))}\n"


def main() -> None:
    """Run the command line; the console script and ``python -m refusal_nn``."""
    _signals.install()
    warnings.formatwarning = _warning
    logging.setLogRecordFactory(_Record)
    cli(prog_name="refusal-nn")
