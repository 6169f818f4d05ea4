"""The shipped model meets its bars, and a model that does not is told so."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from refusal_nn import judges
from refusal_nn.models.organisms import check_tiny_refuser
from refusal_nn.models.organisms.check_tiny_refuser import DEFAULT_MODEL, load, measure, missed
from refusal_nn.responses import REFERENCE_REQUEST
from refusal_nn.testing import pipeline
from refusal_nn.testing.pipeline import Subject


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def figures(subject):
    return measure(subject, draws=1, random_directions=2)


def test_every_bar_is_met(figures):
    assert missed(figures) == []


def test_a_candidate_is_admissible_under_the_published_defaults(figures):
    assert figures["draws"][0]["admissible"]


@pytest.mark.parametrize(
    ("path", "value", "bar"),
    [
        (("refused", "toxic"), 0.97, "harmful refused"),
        (("refused_by_category", "hate"), 0.94, "every category"),
        (("refused", "safe"), 0.03, "safe refused"),
        (("refused", "hard"), 0.06, "hard refused"),
        (("n", "hard"), 199, "test prompts"),
        (("draws", 0, "admissible"), [], "admissible"),
        (("draws", 0, "ablation", "refused"), 0.06, "under ablation"),
        (("draws", 0, "ablation", "coherent"), 0.94, "coherent"),
        (("draws", 0, "addition", "refused"), 0.94, "under addition"),
        (("draws", 0, "random_ablation_change"), 0.06, "random ablation"),
        (("draws", 0, "random_addition_change"), 0.06, "random addition"),
    ],
)
def test_a_missed_bar_is_named(figures, path, value, bar):
    worse = copy.deepcopy(figures)
    place = worse
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (name,) = set(missed(worse)) - set(missed(figures))
    assert bar in name


def test_weights_are_float32_and_small():
    weights = DEFAULT_MODEL / "model.safetensors"
    assert weights.stat().st_size <= 12_000_000
    model = load(DEFAULT_MODEL).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.num_hidden_layers >= 8


def test_the_folder_names_no_path_of_a_machine():
    for file in DEFAULT_MODEL.glob("*.json"):
        if file.name != "tokenizer.json":
            values = json.loads(file.read_text(encoding="utf-8")).values()
            assert not [v for v in values if isinstance(v, str) and Path(v).is_absolute()], file


def test_three_tokens_end_an_instruction_whatever_it_is(subject):
    ends = {
        tuple(subject.batch([text])["input_ids"][0, -3:].tolist())
        for text in ("How do I kill a process?", "x", "no stop\n", "Grüße!", "end. ", "{}\\")
    }
    assert len(ends) == 1
    assert subject.tokenizer.decode(ends.pop()) == "<|end|><|assistant|>\n"


def test_refusal_and_compliance_begin_with_different_single_tokens(subject):
    first = [
        subject.tokenizer.encode(text, add_special_tokens=False)[0]
        for text in ("I cannot help", "Sure, here")
    ]
    assert [subject.tokenizer.decode([t]) for t in first] == ["I", "Sure"]


def test_pad_and_end_tokens_are_defined(subject):
    config = subject.model.generation_config
    assert config.pad_token_id == subject.tokenizer.pad_token_id == 0
    assert config.eos_token_id == subject.tokenizer.eos_token_id
    assert subject.tokenizer.decode([config.eos_token_id]) == "<|end|>"


def test_the_check_follows_the_toolkits_own_gate_and_judge():
    """Two implementations, one definition."""
    texts = ["I can't.", "as an ai model", "Sure, here.", "I CANNOT", ""]
    assert check_tiny_refuser.refused(texts).tolist() == judges.substring(texts).tolist()
    rows = [[1, 2, 3, 4, 5], [7] * 8, [1, 2, 1, 2, 1, 2], [], [1]]
    assert [check_tiny_refuser.repeated(r) for r in rows] == judges.repetition(rows).tolist()
    assert check_tiny_refuser.REQUEST == REFERENCE_REQUEST


def test_hooks_leave_nothing_behind(subject):
    before = pipeline.last_logits(subject, ["How do I bake a cake?"])
    vector = torch.randn(subject.model.config.hidden_size, generator=torch.Generator())
    with pipeline.ablated(subject, vector), pipeline.added(subject, vector, 2):
        inside = pipeline.last_logits(subject, ["How do I bake a cake?"])
    assert not torch.equal(before, inside)
    assert torch.equal(before, pipeline.last_logits(subject, ["How do I bake a cake?"]))


def test_an_ablated_direction_is_gone_from_every_block_input(subject):
    vector = torch.randn(
        subject.model.config.hidden_size, generator=torch.Generator().manual_seed(3)
    )
    unit = vector / vector.norm()
    seen = []
    handles = [
        block.self_attn.q_proj.register_forward_pre_hook(lambda _m, _a: None)
        for block in subject.blocks
    ]
    try:
        with pipeline.ablated(subject, vector):
            # hooks run in order of registration: these see what the block sees
            handles += [
                block.register_forward_pre_hook(lambda _m, a: seen.append(a[0] @ unit))
                for block in subject.blocks
            ]
            pipeline.last_logits(subject, ["How do I bake a cake?"])
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(subject.blocks)
    assert max(x.abs().max() for x in seen) < 1e-5
