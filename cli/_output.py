"""How commands print: tables and one JSON document on stdout, notices on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._options import STDOUT

if TYPE_CHECKING:
    from refusal_nn.runs import Run


def to_plain(value: Any) -> Any:
    """Convert to JSON's own types: NaN and infinity become null, arrays lists, paths strings.

    Raises
    ------
    TypeError
        If a value has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
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
    stdout = click.get_current_context().meta.get(STDOUT, sys.stdout)
    text = json.dumps(to_plain(document), indent=2, allow_nan=False, ensure_ascii=False)
    click.echo(text, file=stdout)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str | None = None,
    empty: str = "nothing to list",
) -> None:
    """Print rows under their column names.

    Parameters
    ----------
    columns : sequence of str
        Headings.
    rows : iterable of sequence
        Cells; numbers are right-aligned, None is shown as a dash.
    title : str, optional
        Heading of the table.
    empty : str
        Notice on stderr when there are no rows.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    if not cells:
        notice(empty)
        return
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float | None) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:  # a pipe has no width: never fold what a program will read
        console = Console(file=sys.stdout, width=10_000)
    with console.capture() as capture:
        console.print(table)
    # rich pads every line to the table's width; trailing blanks are noise in a file
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def notice(message: str) -> None:
    """Write a line to stderr."""
    click.echo(message, err=True)


def notice_run(run: Run) -> None:
    """Say on stderr where a run is, and whether it was there before."""
    notice(f"{'already complete' if run.reused else 'wrote'}: {run.path}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return str(value)
