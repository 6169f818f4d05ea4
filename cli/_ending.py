"""How a command ends: every exception becomes a kind, a sentence and an exit code, here alone."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

import click

from refusal_nn._terminal import one_line, printable
from refusal_nn.cli._config import read_config
from refusal_nn.cli._output import print_error, write
from refusal_nn.cli._signals import Terminated, terminated
from refusal_nn.errors import RefusalNNError, RequestError, fix_in

KINDS = {
    "request": "what was asked can never succeed",
    "usage": "an option, argument or command is not one, or has no value it may have",
    "store": "a run, a folder of runs or a variable is not what it must be",
    "prompt": "a prompt file or set of prompts cannot be used",
    "model": "a model cannot be loaded or is not understood",
    "intervention": "an intervention does not fit the model",
    "preflight": "a job cannot run where this package is not installed",
    "file": "the system refused a file for what it is or how it is named",
    "nesting": "something given is nested too deeply to be read",
    "work": "the work failed",
    "backend": "a server or the process of a dry run failed to execute a job",
    "unavailable": "a server cannot be reached or is not ready",
    "verification": "stored data are not what was written",
    "system": "the system failed: a full disk, too many open files",
    "memory": "memory ran out",
    "aborted": "a question was not answered with yes",
    "bug": "a mistake in this program or in an installed package",
    "interrupted": "the user pressed Ctrl-C",
    "terminated": "the process was asked to end (SIGTERM)",
}
"""Every kind of error that ``--json`` may name, and what it means."""

_LONGEST = 1500
"""Most characters of a message: it may quote what was typed."""
_KEPT = (
    "If a run was begun, its finished batches are kept: `refusal-nn runs list` shows a partial run "
    "and `refusal-nn runs resume NAME` continues it."
)
_WRONG_FILE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose a place that can be written to",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.EEXIST: "choose another name",
    errno.ENOENT: "check the path",
    errno.ELOOP: "remove the links that lead to one another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EINVAL: "choose another name",
    errno.ENXIO: "give a plain file",
}
_FAILED_SYSTEM = {
    errno.ENOSPC: "free some space and try again",
    errno.EDQUOT: "free some space and try again",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "end programs that hold files open",
    errno.ENOMEM: "end other programs or try a smaller --batch-size",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """What is said of an exception, and the exit code."""

    kind: str
    message: str
    fix: str | None
    code: int


class Ended(click.ClickException):
    """A command that ended by an exception; shown as a sentence, and as a document if asked for.

    Parameters
    ----------
    error : BaseException
    as_json : bool
        Print a document on stdout, too.
    """

    def __init__(self, error: BaseException, *, as_json: bool) -> None:
        self.ending = ending_of(error)
        super().__init__(self.ending.message)
        self.exit_code = self.ending.code  # type: ignore[misc]
        self._error = error
        self._as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        error, ending = self._error, self.ending
        if self._as_json:
            print_error(ending.kind, ending.message, ending.fix)
        if isinstance(error, click.exceptions.NoArgsIsHelpError):  # not wrong, only unfinished
            error.show(file)
            return
        if ending.kind == "interrupted":
            write("", err=True)  # ends the line of the terminal's ^C
        if isinstance(error, click.UsageError) and error.ctx is not None:
            command = error.ctx.command_path
            write(f"{printable(error.ctx.get_usage())}\n{_hint(command)}\n", err=True)
        # escapes are longer than what they stand for
        write(f"Error: {_cut(one_line(ending.message))}", err=True)


def ending_of(error: BaseException) -> Ending:
    """The kind, sentence, fix and exit code of an exception."""
    if terminated() or isinstance(error, Terminated):
        return Ending("terminated", f"terminated. {_KEPT}", _KEPT, 143)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", f"interrupted. {_KEPT}", _KEPT, 130)
    if isinstance(error, click.Abort):
        return _said("aborted", "not confirmed, so nothing was done; answer y, or pass --yes.", 1)
    if isinstance(error, RefusalNNError):
        code = 2 if isinstance(error, RequestError) else 1
        return Ending(error.kind, _cut(str(error)), error.fix, code)
    if isinstance(error, click.ClickException):
        message = _cut(_sentence(error.format_message()))
        hint = _hint(error.ctx.command_path) if getattr(error, "ctx", None) else None  # type: ignore[attr-defined]
        return Ending("usage", message, fix_in(message) or hint, error.exit_code)
    if _out_of_memory(error):
        text = "there is not enough memory for this; try a smaller --batch-size or another --dtype."
        return _said("memory", text, 1)
    if isinstance(error, RecursionError):
        text = f"something given is nested too deeply to be read (at {_place(error)}); give less."
        return _said("nesting", text, 2)
    if isinstance(error, OSError) and error.strerror:
        fix = _WRONG_FILE.get(error.errno or 0)
        named = f" {_cut(str(error.filename), 200)!r}" if error.filename else ""
        text = f"the system refused{named or ' a file'}: {error.strerror}"
        if fix is not None:
            return _said("file", f"{text}; {fix}.", 2)
        return _said("system", f"{text}; {_FAILED_SYSTEM.get(error.errno or 0, 'try again')}.", 1)
    text = (
        f"{type(error).__name__} at {_place(error)}: this is a bug of refusal-nn; report it with what "
        "`refusal-nn --log-level debug` shows of it."
    )
    return _said("bug", text, 1)


def wants_json(root: click.Group, context: click.Context | None, typed: Sequence[str]) -> bool:
    """Whether ``--json`` was asked for, typed or by a config file, in words that cannot be parsed."""
    context = context or click.Context(root)
    command: click.Command = root
    config, words = None, iter(typed)
    for word in words:
        if word == "--":
            break
        if word == "--json":
            return True
        if not word.startswith("-") and isinstance(command, click.Group):
            command = command.get_command(context, word) or command
        elif word.startswith("--config="):
            config = word.partition("=")[2]
        elif _takes_value(command, word):
            value = next(words, None)
            config = value if word == "--config" else config
    try:
        said = "no" if config is None else read_config(config, command).get("as_json", "no")
    except RefusalNNError:
        return False
    return str(said).lower() not in ("false", "f", "no", "n", "off", "0")


def log_ending(error: BaseException) -> None:
    """Where an exception came from, for ``--log-level debug``."""
    if not isinstance(error, Ended | click.exceptions.Exit):
        _log.debug("%s", type(error).__name__, exc_info=error)


def _takes_value(command: click.Command, word: str) -> bool:
    return any(
        isinstance(parameter, click.Option) and word in parameter.opts and not parameter.is_flag
        for parameter in command.params
    )


def _said(kind: str, message: str, code: int) -> Ending:
    return Ending(kind, message, fix_in(message), code)


def _hint(command: str) -> str:
    return f"Try '{command} --help' for help."


def _sentence(text: str) -> str:
    """A message of click, which writes choices one a line."""
    return text.replace("\n\t", " ")


def _cut(text: str, longest: int = _LONGEST) -> str:
    """A text without its middle where it is too long to read."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}"


def _out_of_memory(error: BaseException) -> bool:
    """Told without importing torch, whose errors on the processor are plain ``RuntimeError``."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    said = ("not enough memory", "out of memory", "can't allocate memory", "bad alloc")
    return isinstance(error, RuntimeError) and any(words in text for words in said)


def _place(error: BaseException) -> str:
    """The innermost line of ours that an exception passed through, with the one that raised it."""
    frames: list[tuple[FrameType, int]] = []
    at = error.__traceback__
    while at is not None:
        frames.append((at.tb_frame, at.tb_lineno))
        at = at.tb_next
    lines = [(str(frame.f_globals.get("__name__")), line) for frame, line in frames]
    ours = [where for where in lines if where[0].partition(".")[0] == "refusal_nn"]
    shown = [*ours[-1:], *(where for where in lines[-1:] if where not in ours[-1:])]
    return " in ".join(f"{module}:{line}" for module, line in reversed(shown)) or "an unknown place"
