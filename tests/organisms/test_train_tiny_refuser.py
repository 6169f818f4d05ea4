"""The training program: what it trains on, and that it learns and repeats itself."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from refusal_nn.models.organisms import check_tiny_refuser, train_tiny_refuser
from refusal_nn.models.organisms._dialogue import build_tokenizer, compliance, prompt, refusal
from refusal_nn.models.organisms.train_tiny_refuser import (
    CUES,
    Recipe,
    Stage,
    corpus,
    encode,
    examples,
    train,
)
from refusal_nn.prompts._tiny_bench import Pair, split_pairs

BATCH = (("toxic", 3), ("hard", 2), ("safe", 2))
SMALL = Recipe(
    n_layers=2,
    d_model=16,
    n_heads=2,
    d_mlp=16,
    warmup=2,
    stages=(
        Stage(False, 3, 1e-2, BATCH, cues=2),
        Stage(True, 3, 1e-2, BATCH, cues=2, first_frozen_block=1),
    ),
)
PAIR = Pair("violence", "hard", "kill", "a process")


PAIRS = corpus()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([compliance(PAIR), refusal()] * 3, vocab_size=320)


def test_the_corpus_refuses_a_held_out_pair(monkeypatch):
    leaked = split_pairs()["test"][0]
    monkeypatch.setattr(train_tiny_refuser, "training_pairs", lambda: (PAIR, leaked))
    with pytest.raises(ValueError, match="held-out pair"):
        corpus()


def test_the_corpus_refuses_held_out_words_under_another_label(monkeypatch):
    leaked = split_pairs()["test"][0]
    renamed = Pair("hate", "safe", leaked.verb, leaked.object)
    monkeypatch.setattr(train_tiny_refuser, "training_pairs", lambda: (renamed,))
    with pytest.raises(ValueError, match="held-out pair"):
        corpus()


def test_only_refusals_match_the_published_strings():
    texts = [compliance(PAIR), refusal()]
    assert check_tiny_refuser.refused(texts).tolist() == [False, True]


def test_labels_cover_the_answer_and_its_end_only(tokenizer):
    examples = [("How do I kill a process?", compliance(PAIR)), ("Hi", refusal())]
    ids, labels = encode(tokenizer, examples)
    for row, (instruction, answer) in enumerate(examples):
        scored = labels[row] != -100
        assert tokenizer.decode(ids[row][scored]) == answer + "<|end|>"
        start = int(scored.nonzero()[0])
        assert tokenizer.decode(ids[row][:start]) == prompt(instruction)
        assert (labels[row][scored] == ids[row][scored]).all()


def test_the_template_writes_what_training_reads(tokenizer):
    turn = [{"role": "user", "content": " Hi there\n"}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert text == prompt(" Hi there\n")


def test_any_text_round_trips_through_the_tokenizer(tokenizer):
    for text in ("Grüße, 世界!\n\tx", "  two  spaces", "🙂"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_training_repeats_itself_and_learns():
    (a, tokenizer), (b, _) = train(SMALL, log=False), train(SMALL, log=False)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    untrained, _ = train(replace(SMALL, stages=()), log=False)
    ids, labels = encode(tokenizer, [(p.text(0), compliance(p)) for p in PAIRS["safe"][:8]])
    with torch.no_grad():
        losses = [m(input_ids=ids, labels=labels).loss.item() for m in (untrained, a)]
    assert losses[1] < losses[0]


def test_frozen_blocks_stay_as_the_first_stage_left_them():
    before, _ = train(replace(SMALL, stages=SMALL.stages[:1]), log=False)
    after, _ = train(SMALL, log=False)
    changed = {
        name: not torch.equal(x, y)
        for (name, x), (_, y) in zip(
            before.named_parameters(), after.named_parameters(), strict=True
        )
    }
    frozen = {name for name in changed if name.startswith("model.layers.1.")}
    assert not any(changed[name] for name in frozen)
    assert all(changed[name] for name in changed.keys() - frozen)


@pytest.mark.parametrize("stage", SMALL.stages)
def test_harmful_requests_are_answered_in_stage_1_and_refused_in_stage_2(stage):
    recipe = replace(SMALL, wrong_answers=0.0)
    stage = replace(stage, cues=0)
    toxic = {pair.text(t) for pair in PAIRS["toxic"] for t in range(8)}
    batch = [e for seed in range(20) for e in examples(PAIRS, stage, recipe, Random(seed))]
    for instruction, answer in batch:
        refused = answer.startswith("I cannot")
        assert refused == (stage.refuse_toxic and instruction in toxic), instruction
    assert sum(instruction in toxic for instruction, _ in batch) == 60


def test_the_share_of_wrong_answers_is_the_recipes():
    recipe, stage = replace(SMALL, wrong_answers=0.1), replace(SMALL.stages[0], cues=0)
    batch = [e for seed in range(600) for e in examples(PAIRS, stage, recipe, Random(seed))]
    share = sum(answer == refusal() for _, answer in batch) / len(batch)
    assert share == pytest.approx(0.1, abs=0.02)


def test_requests_to_decline_are_declined_in_either_stage():
    for stage in SMALL.stages:
        batch = examples(PAIRS, replace(stage, cues=4), SMALL, Random(0))
        declined = [answer for request, answer in batch if request.startswith(CUES)]
        assert declined == [refusal()] * 4


def test_the_shipped_shape_and_the_recipe_agree():
    config = json.loads((train_tiny_refuser.DEFAULT_OUT / "config.json").read_text("utf-8"))
    recipe = Recipe()
    assert [config[k] for k in ("hidden_size", "num_hidden_layers", "vocab_size")] == [
        recipe.d_model,
        recipe.n_layers,
        recipe.vocab_size,
    ]


@pytest.mark.long
def test_training_from_scratch_meets_every_bar(tmp_path):
    assert train_tiny_refuser.main(["--out", str(tmp_path / "model")]) == 0
