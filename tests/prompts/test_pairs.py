"""Contrast pairs: what a set holds, what a file must say, and the set shipped for tiny-refuser."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from refusal_nn.errors import PromptError
from refusal_nn.prompts import Pairs, check_disjoint, load_pairs
from refusal_nn.prompts._tiny_bench import TEMPLATES, split_pairs
from refusal_nn.prompts._tiny_pairs import data_path, to_jsonl, tokenizer_path


def rows(n: int = 4, **change: str) -> list[dict[str, str]]:
    return [
        {
            "clean": f"make bomb {i}",
            "corrupted": f"make pie {i}",
            "category": "violence",
            "split": ("train", "val", "test")[i % 3],
            "family": f"f{i}",
            **change,
        }
        for i in range(n)
    ]


def write(path: Path, items: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, items)))
    return path


def test_row_k_of_both_sides_is_pair_k():
    pairs = Pairs.from_rows(rows())
    assert list(pairs) == [(f"make bomb {i}", f"make pie {i}") for i in range(4)]
    assert set(pairs.clean.harm) == {"harmful"}
    assert set(pairs.corrupted.harm) == {"harmless"}
    assert pairs.clean.family.tolist() == pairs.corrupted.family.tolist()


def test_selections_keep_the_sides_together():
    pairs = Pairs.from_rows(rows(6))
    assert list(pairs.val) == [("make bomb 1", "make pie 1"), ("make bomb 4", "make pie 4")]
    assert list(pairs[[3, 0]]) == [("make bomb 3", "make pie 3"), ("make bomb 0", "make pie 0")]
    with pytest.raises(PromptError, match="no pairs in split 'test'"):
        _ = pairs.train.test


def test_the_id_of_a_pair_depends_on_both_texts_and_their_order():
    first = Pairs.from_rows(rows(1)).pair_id[0]
    other = Pairs.from_rows(rows(1, corrupted="make cake")).pair_id[0]
    turned = Pairs.from_rows(rows(1, clean="make pie 0", corrupted="make bomb 0")).pair_id[0]
    assert len({first, other, turned}) == 3


def test_the_hash_is_that_of_content_not_of_the_name():
    a, b = Pairs.from_rows(rows(), name="a"), Pairs.from_rows(rows(), name="b")
    assert a == b
    assert hash(a) == hash(b)
    assert a != a[::-1]
    assert a != Pairs.from_rows(rows(category="privacy"))


def test_the_dataset_is_labelled_by_pair():
    table = Pairs.from_rows(rows(), name="mine").to_dataset()
    assert table["clean_text"].dims == ("prompt",)
    assert table["corrupted_text"].values.tolist()[2] == "make pie 2"
    assert table.attrs == {"prompts": "mine", "prompts_hash": Pairs.from_rows(rows()).hash}
    assert table["split"].values.tolist() == ["train", "val", "test", "train"]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*rows(2), {**rows(1)[0], "family": "x"}], "repeats pair 1"),
        (rows(1, clean="Make  PIE 0"), "needs one of each class"),
        ([*rows(1), *rows(1, clean="make pie 0", corrupted="else")], "of one class only"),
        (rows(1, split="dev"), "split 'dev'"),
        (rows(1, category=""), "empty category"),
    ],
)
def test_what_is_not_a_set_of_pairs_is_refused(items, message):
    with pytest.raises(PromptError, match=message):
        Pairs.from_rows(items)


def test_a_file_of_pairs_round_trips(tmp_path):
    pairs = Pairs.from_rows(rows(9), name="mine")
    again = load_pairs(write(tmp_path / "mine.jsonl", pairs.to_rows()))
    assert again == pairs
    assert again.name == "mine"


@pytest.mark.parametrize("names", [("clean", "corrupted"), ("Harmful", "harmless")])
def test_a_file_needs_only_the_two_texts(tmp_path, names):
    table = tmp_path / "two.csv"
    lines = [",".join(names), *(f"make bomb {i},make pie {i}" for i in range(12))]
    table.write_text("\n".join(lines))
    pairs = load_pairs(table, seed=3)
    assert len(pairs) == 12
    assert pairs.splits == ["train", "val", "test"]
    assert load_pairs(table, seed=3) == pairs
    assert load_pairs(table, seed=4) != pairs


def test_drawn_splits_keep_a_shared_partner_together(tmp_path):
    items = [{"clean": f"make bomb {i}", "corrupted": f"make pie {i // 3}"} for i in range(30)]
    pairs = load_pairs(write(tmp_path / "shared.jsonl", items))
    by_partner: dict[str, set[str]] = {}
    for text, split in zip(pairs.corrupted.texts, pairs.split, strict=True):
        by_partner.setdefault(text, set()).add(split)
    assert {len(splits) for splits in by_partner.values()} == {1}


def prompt_rows() -> list[dict[str, str]]:
    return [
        {"text": f"{what} {i}", "label": label, "pair": str(i)}
        for i in range(4)
        for what, label in (("pie", "harmless"), ("bomb", "harmful"))
    ]


def test_a_file_of_prompts_that_name_their_pair_is_joined(tmp_path):
    pairs = load_pairs(write(tmp_path / "long.jsonl", prompt_rows()))
    assert sorted(pairs) == [(f"bomb {i}", f"pie {i}") for i in range(4)]


def test_a_pair_of_one_class_is_refused(tmp_path):
    items = [{**row, "label": "harmful"} for row in prompt_rows()]
    with pytest.raises(PromptError, match="pair '0' has 2 harmful and 0 harmless prompts"):
        load_pairs(write(tmp_path / "one.jsonl", items))


def test_a_prompt_without_partner_is_refused(tmp_path):
    with pytest.raises(PromptError, match="pair '3' has 0 harmful and 1 harmless"):
        load_pairs(write(tmp_path / "odd.jsonl", prompt_rows()[:-1]))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"text": "a", "harm": "harmful"}], "no column clean and no column corrupted"),
        ([{"clean": "a"}], "no column corrupted"),
        ([{"clean": "a", "corrupted": " "}], "row 1 has an empty 'corrupted'"),
        ([{"clean": "a", "corrupted": "b", "split": "later"}], "split 'later'"),
    ],
)
def test_a_file_that_lacks_something_says_what(tmp_path, items, message):
    with pytest.raises(PromptError, match=message):
        load_pairs(write(tmp_path / "bad.jsonl", items))


def test_splits_that_share_a_prompt_are_refused(tmp_path):
    items = rows(3)
    items[2]["corrupted"] = items[0]["corrupted"]
    with pytest.raises(PromptError, match="share 1 prompt"):
        load_pairs(write(tmp_path / "leak.jsonl", items))


def test_splits_that_share_a_family_are_refused(tmp_path):
    with pytest.raises(PromptError, match="share"):
        load_pairs(write(tmp_path / "leak.jsonl", rows(3, family="one")))


def test_an_unknown_set_names_the_known_ones():
    with pytest.raises(PromptError, match="known are tiny-pairs"):
        load_pairs("tiny-pair")


@pytest.fixture(scope="module")
def tiny_pairs() -> Pairs:
    return load_pairs("tiny-pairs")


def test_the_script_remakes_the_shipped_file_byte_for_byte():
    assert data_path().read_bytes() == to_jsonl().encode()


def test_every_split_has_ten_categories_of_many_pairs(tiny_pairs):
    for part in (tiny_pairs.train, tiny_pairs.val, tiny_pairs.test):
        counts = Counter(part.category)
        assert len(part) >= 120
        assert len(counts) == 10
        assert len(set(counts.values())) == 1
        assert len(set(part.family)) >= 60


def request_of(text: str) -> str:
    """What a wording asks for."""
    (found,) = {
        text[len(start) : len(text) - len(end)]
        for start, end in (template.split("{}") for template in TEMPLATES)
        if text.startswith(start) and text.endswith(end)
    }
    return found


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_each_request_is_in_one_family(tiny_pairs, side):
    check_disjoint(tiny_pairs.prompts())
    families: dict[str, set[str]] = {}
    for row in tiny_pairs.to_rows():
        families.setdefault(request_of(row[side]), set()).add(row["family"])
    assert {len(found) for found in families.values()} == {1}
    assert len(families) == len(set(tiny_pairs.family))


def test_pairs_are_aligned_and_differ_in_the_object_alone(tiny_pairs):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path()))
    for clean, corrupted in tiny_pairs:
        words = request_of(clean).split(), request_of(corrupted).split()
        verb = next(i for i, (x, y) in enumerate(zip(*words, strict=False)) if x != y)
        start = clean.index(" ".join(words[0][verb:]))
        tokens = [tokenizer.encode(t, add_special_tokens=False) for t in (clean, corrupted)]
        a, b = (t.ids for t in tokens)
        assert len(a) == len(b), (clean, corrupted)
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        assert tokens[0].offsets[differ[0]][1] > start
        end = len(clean) - len(clean[start:].removeprefix(" ".join(words[0][verb:])))
        assert tokens[0].offsets[differ[-1]][0] < end


def test_no_request_is_in_another_split_of_tiny_bench(tiny_pairs):
    """So a direction found on the train split of one is tested on the test split of the other."""
    bench = {p.request: s for s, pairs in split_pairs().items() for p in pairs}
    held = 0
    for row in tiny_pairs.to_rows():
        for side in ("clean", "corrupted"):
            split = bench.get(request_of(row[side]), "spare")
            assert split in (row["split"], "spare"), row
            held += split == row["split"]
    assert held > 100
