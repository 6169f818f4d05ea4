"""How commands print: tables and one JSON document on stdout, notices on stderr.

What people read may quote files of others, so it is escaped here: nothing in it steers a terminal or
forges a line. JSON keeps every character, the same ones as ``\\u`` escapes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from refusal_nn._terminal import one_line, printable
from refusal_nn.cli._options import STDOUT

if TYPE_CHECKING:
    from refusal_nn.runs import Run

PRINTED = "refusal_nn.printed"
"""Key of the context's ``meta`` that is there once a document was printed: there is one."""
_LONGEST_INT = 4096
"""Most bits of a whole number in JSON: Python writes no longer ones."""


@dataclass(frozen=True)
class Table:
    """What :func:`print_table` prints."""

    rows: Sequence[Any]
    columns: Sequence[str] | None = None
    title: str | None = None
    empty: str = "nothing to list"


class Page(click.Command):
    """A command whose help page may quote an installed package."""

    def get_help(self, ctx: click.Context) -> str:
        """The page, escaped."""
        return printable(super().get_help(ctx))


def show(document: Any, *parts: Table | str | PurePath, notices: Iterable[str] = ()) -> None:
    """Print what a command found: the document where JSON was asked for, else the parts in order.

    Parameters
    ----------
    document
        What scripts read.
    *parts
        What people read: tables, with an empty line before all but the first, and lines.
    notices : iterable of str
        Lines for stderr, which go with the parts.
    """
    if STDOUT in click.get_current_context().meta:
        print_json(document)
        return
    for number, part in enumerate(parts):
        if isinstance(part, Table):
            if number:
                write("")
            print_table(part.columns, part.rows, title=part.title, empty=part.empty)
        else:
            write(one_line(str(part)))
    for line in notices:
        notice(line)


def show_run(
    run: Run, document: Mapping[str, Any], *parts: Table | str, notices: Iterable[str] = ()
) -> None:
    """Print what a run found, and where it is and whether it was there before."""
    said = f"{'already complete' if run.reused else 'wrote'}: {run.path}"
    show({"run": run.path, "reused": run.reused, **document}, *parts, notices=[*notices, said])


def to_plain(value: Any) -> Any:
    """Convert to JSON's own types: NaN and infinity become null, arrays lists, paths strings.

    Raises
    ------
    TypeError
        If a value has no JSON form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _LONGEST_INT else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, pandas and xarray objects' values
        return to_plain(value.tolist())
    if isinstance(value, Iterable):
        return [to_plain(item) for item in value]
    raise TypeError(f"no JSON form for a {type(value).__name__}")


def print_json(document: Any) -> None:
    """Write one JSON document to the true standard output."""
    meta = click.get_current_context().meta
    text = _json(document)
    meta[PRINTED] = True
    _write_json(text, meta.get(STDOUT, sys.stdout))


def print_error(kind: str, message: str, fix: str | None) -> None:
    """Write what went wrong as the one JSON document on stdout."""
    error = {"kind": kind, "message": message, "fix": fix}
    _write_json(_json({"error": error}), sys.stdout)


def write(text: str, *, err: bool = False) -> None:
    """Write a line that is escaped to stdout, or to stderr."""
    click.echo(text, err=err)


def confirm(question: str) -> None:
    """Ask on stderr; goes on if the answer is yes.

    Raises
    ------
    click.Abort
        If it is not.
    """
    try:
        confirmed = click.confirm(one_line(question), err=True)
    except click.Abort:
        write("", err=True)  # ends the line of the question
        raise
    if not confirmed:
        raise click.Abort


def print_table(
    columns: Sequence[str] | None,
    rows: Sequence[Any],
    *,
    title: str | None = None,
    empty: str = "nothing to list",
) -> None:
    """Print rows under their column names.

    Parameters
    ----------
    columns : sequence of str or None
        Headings, and which cells of a mapping are shown; None: all of the first row's.
    rows : sequence of sequence or mapping
        Cells; numbers are right-aligned, None is shown as a dash.
    title : str, optional
        Heading of the table.
    empty : str
        Notice on stderr when there are no rows.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        notice(empty)
        return
    columns = list(rows[0]) if columns is None else columns
    cells = [[r[c] for c in columns] if isinstance(r, Mapping) else list(r) for r in rows]
    if title is not None:
        write(one_line(title))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in cells)
        head = Text(one_line(column))
        table.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(one_line(_cell(value))) for value in row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # a pipe has no width: never fold what a program will read
        console = Console(file=sys.stdout, width=10_000)
    with console.capture() as capture:
        console.print(table)
    # rich pads every line to the table's width; trailing blanks are noise in a file
    # (not splitlines: it ends lines where terminals do not)
    write("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def notice(message: str) -> None:
    """Write a line to stderr."""
    write(one_line(message), err=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return str(value)


def _json(document: Any) -> str:
    """Strict JSON; what would steer a terminal, and half a surrogate pair, as ``\\u`` escapes."""
    text = json.dumps(to_plain(document), indent=2, allow_nan=False, ensure_ascii=False)
    if text.isascii() and "\x7f" not in text:
        return text
    # line ends are the layout's: json has escaped those in strings
    return "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text)


def _write_json(text: str, stdout: Any) -> None:
    try:
        text.encode(getattr(stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text, file=stdout)
