"""Files are read as they are, and what is wrong with one is said with the place."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusal_nn.errors import PromptError
from refusal_nn.prompts._read import _csv, _jsonl, read_rows

ROWS = [
    {"prompt": 'Say "hi", twice', "category": "a"},
    {"prompt": "Zwei\nZeilen, größer", "category": "b"},
]


def write(path, rows):
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "CSV"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path / f"p.{ending.lower()}", ROWS).rename(tmp_path / f"q.{ending}")
    assert read_rows(path) == ROWS


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,category\n\nhello,a\n\n", encoding="utf-8-sig")
    assert read_rows(path) == [{"prompt": "hello", "category": "a"}]


def test_a_json_list_of_strings_is_a_list_of_prompts(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('["one", "two"]')
    assert read_rows(path) == [{"text": "one"}, {"text": "two"}]


BAD = {
    "empty.csv": ("", "empty.csv holds no prompts"),
    "header.csv": ("prompt,category\n", "header.csv holds no prompts"),
    "empty.json": ("[]", "empty.json holds no prompts"),
    "blank.jsonl": ("\n\n", "blank.jsonl holds no prompts"),
    "wide.csv": ("prompt\na, b\n", r"wide.csv, line 2: 2 values for 1 columns \(prompt\); quote"),
    "open.csv": ('prompt\n"a\n', "open.csv, line 2: not CSV"),
    "broken.json": (
        '[{"prompt": }]',
        r"broken.json is not JSON \(line 1: Expecting value\); give an object",
    ),
    "object.json": ('{"prompt": "a"}', "holds a JSON object; it must hold a list"),
    "number.json": ('[{"prompt": "a"}, 3]', "number.json, item 2: a JSON number"),
    "broken.jsonl": (
        '{"prompt": "a"}\n{"prompt"\n',
        r"broken.jsonl, line 2 is not JSON \(Expecting ':' delimiter\); give an object",
    ),
    "list.jsonl": ('["a"]\n', "list.jsonl, line 1: a JSON list"),
    "twice.csv": ("prompt,label,prompt\na,safe,b\n", "twice.csv has two columns 'prompt'; rename"),
    "deep.json": ("[" * 200_000, "deep.json is nested too deeply"),
    "deep.jsonl": (
        '{"a": "b"}\n' + '{"a":' * 200_000,
        "deep.jsonl, line 2 is nested too deeply",
    ),
    "notes.txt": ("hello", r"'notes.txt' is not a prompt file this can read; use one of .csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_file_is_refused_with_the_place(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=message):
        read_rows(tmp_path / name)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(PromptError, match=r"prompt file '.*gone.csv' cannot be read: No such file"):
        read_rows(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("prompt\nfür\n".encode("latin-1"))
    with pytest.raises(PromptError, match=r"latin.csv' is not UTF-8 \(byte 8\); save it"):
        read_rows(tmp_path / "latin.csv")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_jsonl_keeps_any_text(texts):
    content = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    assert [r["text"] for r in _jsonl(content, "x")] == texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1))
def test_csv_keeps_any_text_on_a_line(texts):
    content = "id,text\n" + "".join(f'1,"{t.replace(chr(34), chr(34) * 2)}"\n' for t in texts)
    assert [r["text"] for r in _csv(content, "x")] == texts


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1e"])
def test_csv_lines_end_at_line_ends_only(tmp_path, mark):
    (tmp_path / "p.csv").write_text(f"prompt,label\none{mark}two,safe\n", encoding="utf-8")
    assert read_rows(tmp_path / "p.csv") == [{"prompt": f"one{mark}two", "label": "safe"}]
