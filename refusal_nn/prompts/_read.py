"""Read prompt files as they are: rows of named values, no meaning yet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from refusal_nn._files import parse_json, quoted, read_text
from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import listed, quote

MAX_COLUMNS = 10_000
"""Most columns of a table."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, TSV, JSON or JSONL file.

    Parameters
    ----------
    path : Path
        CSV or TSV with a header line; JSON with a list of objects (or of strings: then the prompts
        themselves); JSONL with an object a line. UTF-8.

    Returns
    -------
    list of dict
        Values as they stand, by column name.

    Raises
    ------
    PromptError
        If the file is missing, no plain file, too large, empty, not UTF-8, not of its format, or of
        another format.
    """
    if path.suffix.lower() not in FORMATS:
        raise PromptError(
            f"{quoted(path.name)} is not a prompt file this can read; use one of {listed(FORMATS)}."
        )
    content = read_text(path, what="prompt file", error=PromptError)
    rows = list(_READERS[path.suffix.lower()](content, path.name))
    if not rows:
        raise PromptError(f"{path.name} holds no prompts.")
    return rows


def _csv(content: str, name: str, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    # the module wants line ends untouched, since a quoted field may hold them; splitlines() would
    # also break lines at U+2028 and its like
    lines = io.StringIO(content, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [h.strip() for h in next(reader, [])]
        if len(header) > MAX_COLUMNS:
            raise PromptError(
                f"{name}, line 1: {len(header):,} columns; a table of prompts has at most "
                f"{MAX_COLUMNS:,}, so keep those with the text and its labels."
            )
        if twice := sorted(h for h, n in Counter(header).items() if h and n > 1):
            raise PromptError(
                f"{name} has two columns {quote(twice[0])}; rename one of them, or remove it."
            )
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise PromptError(
                    f"{name}, line {reader.line_num}: {len(values)} values for {len(header)} "
                    f"columns ({listed(header)}); quote values that hold the delimiter."
                )
            yield dict(zip(header, values, strict=True))
    except csv.Error as e:
        raise PromptError(f"{name}, line {reader.line_num}: not CSV ({e}).") from e


def _json(content: str, name: str) -> Iterator[dict[str, Any]]:
    found = _loads(content, name) if content.strip() else []
    if not isinstance(found, list):
        raise PromptError(
            f"{name} holds a JSON {_kind(found)}; it must hold a list of objects, one a prompt."
        )
    for i, row in enumerate(found, start=1):
        yield _row(row, f"{name}, item {i}")


def _jsonl(content: str, name: str) -> Iterator[dict[str, Any]]:
    # split("\n"), not splitlines(): JSON strings may hold U+2028 and its like unescaped
    for i, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{name}, line {i}"
            yield _row(_loads(line, where), where)


def _loads(text: str, where: str) -> Any:
    """What JSON says that is a whole file, or a line of one."""
    try:
        return parse_json(text, what=where, error=PromptError)
    except PromptError as e:
        # the place of a line is its number in the file, which `where` says
        said = str(e).replace("(line 1: ", "(") if ", line " in where else str(e)
        raise PromptError(f"{said.rstrip('.')}; give an object of plain values a prompt.") from e


def _row(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise PromptError(f"{where}: a JSON {_kind(row)}; each prompt must be an object.")
    return row


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


_READERS: dict[str, Callable[[str, str], Iterator[dict[str, Any]]]] = {
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".json": _json,
    ".jsonl": _jsonl,
}
FORMATS = tuple(_READERS)
"""File endings that can be read."""
