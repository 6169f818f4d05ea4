"""Read prompt files as they are: rows of named values, no meaning yet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refusal_nn.errors import PromptError

FORMATS = (".csv", ".tsv", ".json", ".jsonl")
"""File endings that can be read."""

_FLAT = "each prompt must be an object of plain values"


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
    reader = {".csv": _csv, ".tsv": _tsv, ".json": _json, ".jsonl": _jsonl}[path.suffix.lower()]
    rows = list(reader(content, path.name))
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


def _tsv(content: str, name: str) -> Iterator[dict[str, Any]]:
    return _csv(content, name, delimiter="\t")


def _json(content: str, name: str) -> Iterator[dict[str, Any]]:
    try:
        found = json.loads(content) if content.strip() else []
    except json.JSONDecodeError as e:
        raise PromptError(f"{name}, line {e.lineno}: not JSON ({e.msg}).") from e
    except RecursionError as e:
        raise PromptError(f"{name} is JSON nested too deeply; {_FLAT}.") from e
    if not isinstance(found, list):
        raise PromptError(
            f"{name} holds a JSON {_kind(found)}; it must hold a list of objects, one a prompt."
        )
    for i, row in enumerate(found, start=1):
        yield _row(row, f"{name}, item {i}")


def _jsonl(content: str, name: str) -> Iterator[dict[str, Any]]:
    # split("\n"), not splitlines(): JSON strings may hold U+2028 and its like unescaped
    for i, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise PromptError(f"{name}, line {i}: not JSON ({e.msg}).") from e
        except RecursionError as e:
            raise PromptError(f"{name}, line {i}: JSON nested too deeply; {_FLAT}.") from e
        yield _row(row, f"{name}, line {i}")


def _row(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise PromptError(f"{where}: a JSON {_kind(row)}; each prompt must be an object.")
    return row


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
