"""Prompt files of strangers: one sentence about what is wrong, in bounded time, and nothing followed."""

import json
import os
import time
from pathlib import Path

import pytest

from refusal_nn.errors import PromptError
from refusal_nn.prompts import Prompts, build, load_pairs, load_prompts, stats
from refusal_nn.prompts._columns import as_text
from refusal_nn.prompts._labels import COLUMNS, listed, nearest
from tests.patience import within

ROW = {"prompt": "How do I bake a cake?", "label": "safe"}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


PLACES = {
    "pipe": (_fifo, "is a pipe, not a plain file; give a file"),
    "folder": (Path.mkdir, "neither files train, val or test|is a folder, not a plain file"),
    "loop": (_loop, "cannot be read: Too many levels of symbolic links"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "is a device, not a plain file"),
    "gone": (lambda p: p.symlink_to("nowhere"), "cannot be read: No such file"),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("load", [load_prompts, load_pairs])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_only_plain_files_are_read(tmp_path, kind, load, ending):
    make, message = PLACES[kind]
    make(tmp_path / f"p.{ending}")
    with within(5), pytest.raises(PromptError, match=message):
        load(tmp_path / f"p.{ending}")


@pytest.mark.parametrize("kind", PLACES)
def test_a_folder_of_files_reads_plain_files_alone(tmp_path, kind):
    make, _ = PLACES[kind]
    make(tmp_path / "train.csv")
    with within(5), pytest.raises(PromptError):
        load_prompts(tmp_path)


@pytest.mark.parametrize(
    "name", ["a\0b.csv", "x" * 5000 + ".csv", "y" * 5000, "a\0b", "https://a/b"]
)
@pytest.mark.parametrize("load", [load_prompts, load_pairs])
def test_a_name_that_no_file_has_is_quoted_in_short(name, load):
    with pytest.raises(PromptError) as found:
        load(name)
    assert len(str(found.value)) < 500


CONTENTS = {
    "utf16.csv": ("prompt,label\n".encode("utf-16"), r"not UTF-8 \(byte 0\); save it as UTF-8"),
    "deep.json": (b"[" * 5000 + b"]" * 5000, "deep.json is nested too deeply"),
    "deep.jsonl": (b'{"prompt": ' + b"[" * 70 + b"]" * 70 + b"}", "line 1 is nested too deeply"),
    "digits.jsonl": (b'{"prompt": ' + b"7" * 5000 + b"}", "line 1 is not JSON .*limit.*; give an"),
    "half.jsonl": (b'{"prompt": "\\ud800"}', "line 1 holds text that is not Unicode"),
    "key.jsonl": (b'{"\\udc00": "a"}', "line 1 holds text that is not Unicode"),
    "value.jsonl": (b'{"prompt": {"a": 1}, "label": "safe"}', "row 1 has a dict for its 'prompt'"),
    "list.jsonl": (b'{"prompt": "a", "label": ["safe"]}', "row 1 has a list for its 'label'"),
    "nan.jsonl": (b'{"prompt": "a", "label": NaN}', "row 1 has no label"),
    "null.jsonl": (b'{"prompt": null, "label": "safe"}', "row 1 has an empty 'prompt'"),
    "wide.csv": (b"a," * 1_000_000 + b"b\n", "line 1: 1,000,001 columns; .* at most 10,000"),
    "many.csv": (b",".join(b"c%d" % i for i in range(9000)), "many.csv holds no prompts"),
    "other.jsonl": (
        json.dumps({f"c{i}": "x" for i in range(50_000)}).encode(),
        "no column for the text .* c0, c1, .* and 49,980 more, and needs",
    ),
    "label.jsonl": (
        json.dumps({"prompt": "a", "label": "s" * 10_000_000}).encode(),
        "row 1 has 10,000,000 characters in its 'label'; a label has at most 10,000",
    ),
    "value.csv": (b"prompt,label\na," + b"s" * 9_000, "row 1 has label 's+…'; known are"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_strange_file_is_refused_in_one_short_sentence(tmp_path, name):
    content, message = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    with within(10), pytest.raises(PromptError, match=message) as found:
        load_prompts(tmp_path / name)
    assert len(str(found.value)) < 1000
    assert "\n" not in str(found.value)
    assert name in str(found.value)


@pytest.mark.parametrize("name", CONTENTS)
def test_so_it_is_where_pairs_are_asked_for(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name][0].replace(b"prompt", b"clean"))
    with within(10), pytest.raises(PromptError) as found:
        load_pairs(tmp_path / name)
    assert len(str(found.value)) < 1000


def test_texts_are_kept_whatever_is_in_them(tmp_path):
    texts = ["a\x1b[2Jb", "\u202eabc", "nul\0in", "long " * 200_000 + "end", "\ud83d\ude00".encode(
        "utf-16", "surrogatepass").decode("utf-16")]  # fmt: skip
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({**ROW, "prompt": t}) + "\n" for t in texts))
    with within(10):
        assert load_prompts(path).texts == texts


def test_a_hundred_thousand_rows_take_time_in_proportion(tmp_path):
    took = []
    for n in (5_000, 20_000):
        path = tmp_path / f"{n}.csv"
        rows = "".join(f"prompt {i},safe,c{i},f{i}\n" for i in range(n))
        path.write_text(f"prompt,label,category,family\n{rows}")
        begun = time.process_time()
        stats(load_prompts(path))
        took.append(time.process_time() - begun)
    assert took[1] < 10 * took[0] + 1  # four times as many; squared it were sixteen


def test_pairs_of_many_columns_take_time_in_proportion(tmp_path):
    wide = {f"c{i}": "x" for i in range(20_000)}
    rows = [
        {"prompt": f"{s} {i}", "label": s, "pair": str(i)}
        for i in range(500)
        for s in ("refuse", "safe")
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [{**rows[0], **wide}, *rows[1:]]))
    with within(10):
        assert len(load_pairs(path)) == 500


@pytest.mark.parametrize("what", ["link", "dangling", "folder", "pipe"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_building_writes_over_a_plain_file_alone(tmp_path, what, overwrite):
    precious, out = tmp_path / "precious.txt", tmp_path / "out.jsonl"
    precious.write_text("mine")
    if what == "link":
        out.symlink_to(precious)
    elif what == "dangling":
        out.symlink_to(tmp_path / "new")
    elif what == "folder":
        out.mkdir()
    else:
        os.mkfifo(out)
    before = sorted(tmp_path.iterdir())
    with within(10), pytest.raises(PromptError, match="only a plain file is written over; choose"):
        build("tiny-bench", out, overwrite=overwrite)
    assert precious.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out", ["x" * 300 + ".jsonl", "a\0b.jsonl", "/dev/null/p.jsonl"])
def test_a_place_that_cannot_be_is_named(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptError, match=r"cannot be written: .*; choose another"):
        build("tiny-bench", out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [
    "", "a", "a/b/c", "../a", "a/..", "a b/c", "a/b\0", "http://h/x", "/etc/x", "a/" + "b" * 5000,
    "a/b:../c", "a/b:c:d/e", "a/b:c:d:e", "a/b:c d", "-a/b", "a--b/c", "a/b.git", "~/b",
])  # fmt: skip
def test_what_cannot_be_a_hub_id_is_not_asked_for(place):
    def load(*asked):
        raise AssertionError(asked)

    with pytest.raises(PromptError, match=r"is not hub:OWNER/NAME|names config or split"):
        load_prompts(f"hub:{place}", loader=load)


@pytest.mark.parametrize("rows", [[1], ["text"], [None], [[]]])
def test_rows_are_mappings(rows):
    with pytest.raises(PromptError, match=r"row 1 is a .*; every row maps columns to values"):
        Prompts.from_rows(rows)


@pytest.mark.parametrize("value", [{"a": 1}, ["a"], b"a", object()])
def test_values_of_rows_are_text(value):
    row = {**dict.fromkeys(COLUMNS, "a"), "harm": "harmless", "style": "safe", "split": "test"}
    with pytest.raises(PromptError, match=r"row 1 has a .* for its 'category'; give text"):
        Prompts.from_rows([{**row, "category": value}])


def test_a_number_of_too_many_digits_is_no_text():
    with pytest.raises(PromptError, match="number of thousands of digits"):
        as_text(10**5000, "prompt", "p, row 1")


def test_long_lists_and_names_are_cut_in_messages():
    assert listed(range(3)) == "0, 1, 2"
    assert listed(["x" * 100] * 30) == ", ".join(["x" * 59 + "…"] * 20) + ", and 10 more"
    assert nearest("promt", ["prompt", "label"]) == "prompt"
    with within(5):
        assert nearest("a" * 10**6, ["b" * 10**6]) is None
        assert nearest("a" * 50, (f"{'ab' * 25}{i}" for i in range(10**6))) is None
