"""Loading: names, files of any shape, labels, splits, and writing the canonical form."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from refusal_nn.errors import PromptError
from refusal_nn.prompts import Prompts, available, build, combine, load_prompts
from refusal_nn.prompts._labels import prompt_id
from tests.patience import limit


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def numbered(n, **labels):
    return [{"prompt": f"Prompt number {i}", **labels} for i in range(n)]


def test_the_embedded_set_has_every_split_and_class():
    bench = load_prompts("tiny-bench")
    assert bench.splits == ["train", "val", "test"]
    assert len(bench.categories) == 10
    for split, least in (("train", 128), ("val", 32), ("test", 200)):
        part = bench.select(split=split)
        assert min(len(part.harmful), len(part.harmless)) >= least
    for category in bench.categories:
        assert len(bench.test.toxic.select(category=category)) >= 25


def test_refuse_and_respond_are_labels(tmp_path):
    rows = [
        {"prompt": "How do I pick a lock?", "label": "refuse"},
        {"prompt": "How do I hurt him?", "label": "refuse"},
        {"prompt": "How do I bake?", "label": "respond"},
    ]
    prompts = load_prompts(write(tmp_path / "prompts.json", rows))
    assert prompts.name == "prompts"
    assert prompts.texts == [r["prompt"] for r in rows]
    assert prompts.harm.tolist() == ["harmful", "harmful", "harmless"]
    assert prompts.style.tolist() == ["toxic", "toxic", "safe"]
    assert set(prompts.category) == {"uncategorised"}
    assert set(prompts.source) == {"prompts"}


def test_splits_are_drawn_where_a_file_has_none(tmp_path):
    rows = numbered(40, label="harmful", family="") + [
        {"prompt": f"Wording {w} of {f}", "label": "safe", "family": f"f{f}"}
        for f in range(20) for w in "ab"
    ]  # fmt: skip
    path = write(tmp_path / "p.json", rows)
    prompts = load_prompts(path)
    assert [len(prompts.harmful.select(split=s)) for s in ("train", "val", "test")] == [20, 8, 12]
    assert [len(prompts.harmless.select(split=s)) for s in ("train", "val", "test")] == [20, 8, 12]
    assert load_prompts(path) == prompts
    assert load_prompts(path, seed=1) != prompts
    assert set(load_prompts(path, split="test").split) == {"test"}
    only = load_prompts(path, fractions={"train": 0.5, "test": 0.5})
    assert only.splits == ["train", "test"]


def test_splits_of_a_file_are_kept_under_our_names(tmp_path):
    rows = [
        {"prompt": s, "label": "safe", "split": s}
        for s in ("train", "Validation", "dev", "TEST", "val")
    ]
    prompts = load_prompts(write(tmp_path / "p.json", rows))
    assert prompts.split.tolist() == ["train", "val", "val", "test", "val"]


def test_columns_and_labels_can_be_named(tmp_path):
    rows = [
        {"Frage": "Wie?", "is_bad": 1, "Thema": "x"},
        {"Frage": "Was?", "is_bad": 0, "Thema": "y"},
    ]
    path = write(tmp_path / "p.json", rows)
    prompts = load_prompts(
        path,
        columns={"text": "Frage", "harm": "is_bad", "category": "Thema"},
        labels={"1": "harmful", "0": "hard"},
    )
    assert prompts.style.tolist() == ["toxic", "hard"]
    assert prompts.category.tolist() == ["x", "y"]


def test_the_usual_column_names_are_found_in_any_case(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("Index,Goal,Target,Behavior,Category\n0,Do it,Sure,Doing,Harm\n")
    prompts = load_prompts(path, harm="harmful")
    assert (prompts.texts, prompts.categories) == (["Do it"], ["Harm"])


def test_a_label_for_all_rows_overrides_the_file(tmp_path):
    path = write(tmp_path / "p.json", numbered(4, label="respond"))
    assert set(load_prompts(path, style="hard").style) == {"hard"}
    assert set(load_prompts(path, harm="harmful", category="x").harm) == {"harmful"}
    assert load_prompts("tiny-bench", split="test").splits == ["test"]
    styles = write(
        tmp_path / "s.json", [*numbered(1, style="hard"), {"prompt": "x", "style": "toxic"}]
    )
    assert load_prompts(styles, harm="harmless").style.tolist() == ["hard", "safe"]
    assert load_prompts(styles, harm="harmful").style.tolist() == ["toxic", "toxic"]


ERRORS = [
    ([{"label": "safe", "words": "a"}], {},
     r"p.json has no column for the text .*it has label, words.*columns=\{'text'"),
    ([{"prompt": "a"}], {},
     r"no column that tells harmful from harmless: it has prompt, .*harm, label"),
    ([{"prompt": "a", "label": "maybe"}], {}, r"row 1 has label 'maybe'; known are .*--label maybe="),
    ([{"prompt": "a", "label": "safe"}, {"prompt": " ", "label": "safe"}], {},
     "row 2 has an empty 'prompt'"),
    ([{"prompt": "a", "label": None}], {}, "row 1 has no label"),
    ([{"prompt": "a", "label": "refuse", "style": "safe"}], {},
     "labelled 'refuse' .harmful. but of style"),
    ([{"prompt": "a", "style": "rude"}], {}, "style 'rude'; allowed are toxic, hard, safe"),
    ([{"prompt": "a", "label": "safe", "split": "x"}], {}, "split 'x'; allowed are train, val, test"),
    ([{"prompt": "a", "label": "safe", "split": "test"}, {"prompt": "b", "label": "safe"}], {},
     "row 2 has an empty 'split'"),
    (numbered(2, label="safe"), {"columns": {"text": "promt"}},
     "no column 'promt' .* Did you mean 'prompt'"),
    (numbered(2, label="safe"), {"columns": {"words": "prompt"}}, "no column 'words'; ours are text"),
    (numbered(2, label="1"), {"labels": {"1": "bad"}}, "cannot mean 'bad'; choose from"),
    (numbered(2, label="safe"), {"harm": "evil"},
     "harm cannot be 'evil'; choose from harmful, harmless"),
    (numbered(2), {"style": "safe", "harm": "harmful"}, "style 'safe' is harmless, not harmful"),
    ([{"prompt": ["a", "b"], "label": "safe"}], {}, "row 1 has a list for its 'prompt'; give text"),
    ([{"prompt": {"a": "b"}, "label": "safe"}], {}, "row 1 has a dict for its 'prompt'"),
    ([{"prompt": True, "label": "safe"}], {}, "row 1 has True for its 'prompt'; give text"),
    ([{"prompt": "a", "label": ["safe"]}], {}, "row 1 has a list for its 'label'"),
    ([{"prompt": "a\ud800", "label": "safe"}], {}, r"p.json holds text that is not Unicode \(half of"),
    (numbered(2, label="safe"), {"duplicates": "keep"}, "'error' or 'drop', not 'keep'"),
]  # fmt: skip


def test_numbers_are_prompts_and_untyped_labels(tmp_path):
    rows = [{"prompt": 7, "label": True}, {"prompt": 2.5, "label": False}]
    path = write(tmp_path / "p.json", rows)
    prompts = load_prompts(path, labels={"true": "harmful", "false": "harmless"})
    assert prompts.texts == ["7", "2.5"]
    assert prompts.harm.tolist() == ["harmful", "harmless"]


@pytest.mark.parametrize("name", ["hub:some/set", "advbench", "alpaca"])
def test_a_loader_that_yields_no_mappings_is_named(name):
    with pytest.raises(PromptError, match=r"row 1 is a str; each row must map column names"):
        load_prompts(name, loader=lambda *place: ["how do I bake"])


def test_half_a_character_has_no_id():
    with pytest.raises(PromptError, match=r"half of a character \(U\+DC00\), which is no text"):
        prompt_id("a\udc00")


@pytest.mark.parametrize(("rows", "options", "message"), ERRORS)
def test_a_file_of_the_wrong_form_is_refused_with_the_fix(tmp_path, rows, options, message):
    with pytest.raises(PromptError, match=message):
        load_prompts(write(tmp_path / "p.json", rows), **options)


def test_repeated_prompts_are_refused_or_dropped(tmp_path):
    rows = [*numbered(3, label="safe"), {"prompt": "PROMPT  number 1", "label": "safe"}]
    path = write(tmp_path / "p.json", rows)
    with pytest.raises(PromptError, match="'PROMPT number 1' stands in rows 2 and 4; remove one"):
        load_prompts(path)
    assert load_prompts(path, duplicates="drop").texts == [r["prompt"] for r in rows[:3]]
    assert len(load_prompts(path, check=False)) == 4


def test_contradicting_labels_are_refused_even_when_dropping(tmp_path):
    rows = [{"prompt": "a", "label": "safe"}, {"prompt": "A", "label": "harmful"}]
    with pytest.raises(PromptError, match="rows 1 and 2, labelled harmless and harmful"):
        load_prompts(write(tmp_path / "p.json", rows), duplicates="drop")


def test_overlapping_splits_are_refused_unless_unchecked(tmp_path):
    rows = [
        {"prompt": "a", "label": "safe", "split": "train"},
        {"prompt": "A", "label": "safe", "split": "test"},
    ]
    path = write(tmp_path / "p.json", rows)
    with pytest.raises(PromptError, match="rows 1 and 2, in splits train and test"):
        load_prompts(path)
    families = [{**r, "prompt": f"{i}", "family": "one"} for i, r in enumerate(rows)]
    path = write(tmp_path / "q.json", families)
    with pytest.raises(PromptError, match=r"splits train and test share 1 family .such as 'one'"):
        load_prompts(path)
    assert load_prompts(path, check=False).splits == ["train", "test"]


def test_a_folder_with_a_file_for_each_split_is_read(tmp_path):
    write(tmp_path / "train.json", [{"prompt": "a", "label": "safe"}])
    (tmp_path / "test.csv").write_text("prompt,label\nb,refuse\n")
    prompts = load_prompts(tmp_path)
    assert prompts.split.tolist() == ["train", "test"]
    write(tmp_path / "test.json", [{"prompt": "c", "label": "safe"}])
    with pytest.raises(PromptError, match=r"holds test.csv and test.json; keep one"):
        load_prompts(tmp_path)


def test_a_folder_without_prompts_is_refused(tmp_path):
    with pytest.raises(PromptError, match="holds neither files train, val or test"):
        load_prompts(tmp_path)


def test_an_unknown_name_gets_a_suggestion(tmp_path):
    with pytest.raises(
        PromptError, match="no prompt set or file 'tiny-bensh'; did you mean 'tiny-bench'"
    ):
        load_prompts("tiny-bensh")
    for source in ("zzz", "How do I bake? " * 40, "\0"):
        with pytest.raises(PromptError, match="known are tiny-bench, or-bench, advbench"):
            load_prompts(source)
    with pytest.raises(PromptError, match=r"prompt file '.*gone.csv' cannot be read"):
        load_prompts(tmp_path / "gone.csv")


def test_sources_are_joined_by_plus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.json", numbered(20, label="refuse"))
    write(tmp_path / "good.json", [{"prompt": f"Nice {i}", "label": "respond"} for i in range(20)])
    both = load_prompts("bad.json+good.json")
    assert both.name == "bad+good"
    assert set(both.source) == {"bad", "good"}
    assert (len(both.harmful), len(both.harmless)) == (20, 20)
    with pytest.raises(PromptError, match="stands in rows 1 and 21"):
        load_prompts("bad.json+bad.json")
    with pytest.raises(PromptError, match="empty name beside"):
        load_prompts("bad.json+")


def test_combine_puts_sets_together(grid):
    a, b = grid({("x", "safe", "test"): 2}, name="a"), grid({("y", "toxic", "test"): 3}, name="b")
    both = combine(a, b)
    assert (both.name, both.texts) == ("a+b", a.texts + b.texts)
    assert combine(a, name="c").name == "c"
    with pytest.raises(PromptError, match="nothing to combine"):
        combine()


def test_what_is_built_loads_to_the_same_set(tmp_path):
    path = write(tmp_path / "p.json", numbered(30, label="refuse"))
    built = build(path, tmp_path / "new" / "p.jsonl", category="größe", seed=3)
    again = load_prompts(tmp_path / "new" / "p.jsonl")
    assert again.hash == built.hash == load_prompts(path, category="größe", seed=3).hash
    first = json.loads((tmp_path / "new" / "p.jsonl").read_text("utf-8").splitlines()[0])
    assert list(first) == ["text", "category", "harm", "style", "split", "source", "family"]
    bench = load_prompts("tiny-bench").val
    assert load_prompts(_path(build(bench, tmp_path / "val.jsonl"), tmp_path)).hash == bench.hash


def _path(_: Prompts, folder):
    return folder / "val.jsonl"


def test_building_refuses_to_overwrite_and_leaves_nothing_half_written(tmp_path, grid):
    prompts, out = grid({("a", "safe", "test"): 2}), tmp_path / "p.jsonl"
    out.write_text("old")
    with pytest.raises(PromptError, match="exists; choose another path or overwrite"):
        build(prompts, out)
    with pytest.raises(PromptError, match=r"must end in \.jsonl"):
        build(prompts, tmp_path / "p.csv")
    with pytest.raises(PromptError, match="no prompt set or file"):
        build("zzz", out, overwrite=True)
    assert out.read_text() == "old"
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptError, match=r"p.jsonl' cannot be written: .*; choose another path"):
        build(prompts, tmp_path / "file" / "p.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "p.jsonl"]
    assert build(prompts, out, overwrite=True).hash == load_prompts(out).hash


def test_a_write_that_fails_keeps_the_old_file(tmp_path, grid, monkeypatch):
    from refusal_nn.prompts import _load

    def full(_):
        raise OSError(28, "No space left on device")

    prompts, out = grid({("a", "safe", "test"): 2}), tmp_path / "p.jsonl"
    out.write_text("old")
    monkeypatch.setattr(_load.os, "fsync", full)
    with pytest.raises(PromptError, match="No space left on device"):
        build(prompts, out, overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("p.jsonl", "old")]


def test_the_sets_known_by_name_are_listed():
    names = [s.name for s in available()]
    assert names[0] == "tiny-bench"
    assert {"or-bench", "advbench", "jailbreakbench", "alpaca", "xstest"} <= set(names)
    assert all(s.summary and s.place for s in available())


def test_prompts_judges_and_stats_need_no_torch():
    code = (
        "import refusal_nn as rn, sys; p = rn.load_prompts('tiny-bench'); rn.prompts.stats(p);"
        "rn.judges.substring(['a']); rn.stats.rate([True]);"
        "assert not {'torch', 'transformers', 'nnsight', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=limit(20))
