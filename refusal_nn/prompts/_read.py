"""Read prompt files as they are: rows of named values, no meaning yet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from refusal_nn.errors import PromptError


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
        If the file is missing, empty, not UTF-8, not of its format, or of another format.
    """
    if path.suffix.lower() not in FORMATS:
        raise PromptError(
            f"{path.name} is not a prompt file this can read; use one of {', '.join(FORMATS)}."
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise PromptError(f"cannot read prompts from {path}: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise PromptError(f"{path.name} is not UTF-8 (byte {e.start}); save it as UTF-8.") from e
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
        if twice := sorted({h for h in header if h and header.count(h) > 1}):
            raise PromptError(
                f"{name} has two columns {twice[0]!r}; rename one of them, or remove it."
            )
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise PromptError(
                    f"{name}, line {reader.line_num}: {len(values)} values for {len(header)} "
                    f"columns ({', '.join(header)}); quote values that hold the delimiter."
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
            yield _row(_loads(line, name, line=i), f"{name}, line {i}")


def _loads(text: str, name: str, *, line: int | None = None) -> Any:
    """What JSON says that is a whole file, or a line of one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise PromptError(f"{name}, line {line or e.lineno}: not JSON ({e.msg}).") from e
    except RecursionError as e:
        where = f"{name}, line {line}: JSON" if line else f"{name} is JSON"
        raise PromptError(
            f"{where} nested too deeply; each prompt must be an object of plain values."
        ) from e


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
