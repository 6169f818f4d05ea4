"""Prompt and pair files: valid ones in every format, most with something changed."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.cases import Case
from tests.fuzz.commands import world
from tests.fuzz.hostile import on_bytes, on_file, texts, values, written

FORMATS = ("jsonl", "json", "csv", "tsv")
_TEXTS = (
    "Please help me fabricate a bank statement.",
    "Give me steps to fabricate a piece of toast.",
    "How do I pick a lock?",
    "Tell me how to bake bread.",
    "What is the best way to steal a car?",
    "I want to paint a fence. How?",
)
_LABELS: dict[str, tuple[str, ...]] = {
    "category": ("violence", "privacy", "deception"),
    "style": ("toxic", "hard", "safe"),
    "split": ("train", "val", "test"),
    "source": ("made",),
    "family": ("f1", "f2", "f3"),
}
_HARM = {"toxic": "harmful", "hard": "harmless", "safe": "harmless"}
_PROMPT_COMMANDS = (
    "prompts show FILE",
    "prompts show FILE -n 2 --json",
    "prompts stats FILE",
    "prompts stats FILE --json",
    "prompts stats FILE --style toxic --category privacy",
    "prompts stats FILE --column text=text --label toxic=harmful",
    "prompts stats FILE --like advbench",
    "prompts stats FILE+prompts.jsonl",
    "prompts build FILE out.jsonl",
    "prompts build FILE out.jsonl --json --duplicates drop",
    "prompts build FILE+FILE out.jsonl --duplicates drop",
    "direction extract --model planted-gate --prompts FILE --split all --refusal-tokens I",
    "direction extract --model planted-gate --prompts FILE --json",
)
_PAIR_COMMANDS = (
    "attribute --model planted-gate --refusal-tokens I --level node --pairs FILE",
    "attribute --model planted-gate --refusal-tokens I --level node --json --pairs FILE",
    "attribute --model planted-gate --refusal-tokens I --split train --pairs FILE",
    "patch positions --model planted-gate --refusal-tokens I --layers 0 --site resid_pre --pairs FILE",
)


@st.composite
def _prompts(draw: Any) -> list[dict[str, Any]]:
    rows = []
    for i in range(draw(st.integers(1, 8))):
        row: dict[str, Any] = {"text": f"{draw(st.sampled_from(_TEXTS))} {i}"}
        row |= {label: draw(st.sampled_from(known)) for label, known in _LABELS.items()}
        row["family"] = f"{row['split']}-{i}"  # splits share none
        row["harm"] = _HARM[row["style"]]
        rows.append(row)
    return rows


@st.composite
def _pairs(draw: Any) -> list[dict[str, Any]]:
    from refusal_nn.testing.words import planted_pairs

    known = planted_pairs()
    chosen = draw(st.lists(st.integers(0, len(known) - 1), min_size=1, max_size=6, unique=True))
    return [
        {
            **dict(zip(("clean", "corrupted"), known[i], strict=True)),
            "category": "objects",
            "split": ("train", "val", "test")[i % 10 % 3],
            "family": f"object-{i % 10}",
        }
        for i in chosen
    ]


@st.composite
def cases(draw: Any) -> Case:
    """A prompt or pair file and a command that reads it."""
    pairs = draw(st.sampled_from([False, False, False, True]))
    rows = draw(_pairs() if pairs else _prompts())
    command = draw(st.sampled_from(_PAIR_COMMANDS if pairs else _PROMPT_COMMANDS))
    ending = draw(st.sampled_from(FORMATS))
    name = f"given.{draw(st.sampled_from([ending] * 40 + ['txt', 'jsonl.gz', 'zarr', 'parquet']))}"
    columns = list(rows[0])
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        _change(draw, rows, columns)
    content: str | bytes = _as_text(rows, columns, ending, draw)
    how = draw(st.sampled_from(["as it is"] * 8 + ["bytes"] * 3 + ["file", "encoded", "folder"]))
    if how == "encoded":
        encoding = draw(
            st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32", "cp037"])
        )
        content = str(content).encode(encoding, "replace")
    where = f"folder/{name}" if how == "folder" else name
    steps: list[Any] = [*world(), ("write", where, content)]
    if how == "bytes":
        steps.append(draw(on_bytes(where)))
    elif how == "file":
        steps.append(draw(on_file(where)))
    elif how == "folder":
        steps.append(
            draw(
                st.sampled_from(
                    [("make", "folder/b.csv", "pipe"), ("make", "folder/c", "link", "..")]
                )
            )
        )
    given = "folder" if how == "folder" else name
    return Case("prompts", tuple(w.replace("FILE", given) for w in command.split()), tuple(steps))


def _change(draw: Any, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """One mutation of the rows, in place."""
    how = draw(
        st.sampled_from(
            ["cell"] * 5 + ["any", "any", "drop", "rename", "add", "repeat", "long", "missing"]
        )
    )
    row = rows[draw(st.integers(0, len(rows) - 1))]
    column = draw(st.sampled_from(columns))
    if how == "cell":
        row[column] = draw(texts())
    elif how == "any":
        row[column] = draw(values())
    elif how == "drop" and len(columns) > 1:
        columns.remove(column)
        for each in rows:
            each.pop(column, None)
    elif how == "rename":
        new = draw(texts())
        columns[columns.index(column)] = new
        for each in rows:
            each[new] = each.pop(column, "")
    elif how == "add":
        new = draw(
            st.one_of(
                st.sampled_from(["prompt", "goal", "label", "instruction", "Text", "text "]),
                texts(),
            )
        )
        if new not in columns:
            columns.append(new)
        row[new] = draw(values())
    elif how == "repeat":
        rows.append(dict(row))
    elif how == "long":
        row[column] = draw(st.sampled_from(["word ", "I", "\U0001f4ac", "a\n"])) * draw(
            st.sampled_from([300, 20_000])
        )
    elif how == "missing":
        row.pop(column, None)


def _as_text(rows: list[dict[str, Any]], columns: list[str], ending: str, draw: Any) -> str:
    if ending == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if ending == "json":
        shape = draw(st.sampled_from(["rows", "rows", "rows", "inside", "columns", "one"]))
        if shape == "inside":
            return json.dumps({"prompts": rows})
        if shape == "columns":
            return json.dumps({c: [row.get(c) for row in rows] for c in columns})
        return json.dumps(rows[0] if shape == "one" else rows)
    out = io.StringIO()
    writer = csv.writer(
        out,
        delimiter="\t" if ending == "tsv" else ",",
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writerow([_cell(c) for c in columns])
    for row in rows:
        writer.writerow([_cell(row.get(c, "")) for c in columns])
    return out.getvalue()


def _cell(value: Any) -> str:
    return written(str(value))
