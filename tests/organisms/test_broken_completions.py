"""The coherence gate on the shipped set: broken text is flagged, normal text is not."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from refusal_nn import judges
from refusal_nn.models.organisms import make_broken_completions
from refusal_nn.models.organisms.check_tiny_refuser import DEFAULT_MODEL, REQUEST, Gate, load
from refusal_nn.prompts._tiny_bench import rows
from refusal_nn.testing import pipeline


@pytest.fixture(scope="module")
def shipped():
    text = make_broken_completions.DEFAULT_OUT.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def coherent(shipped):
    """The toolkit's gate, calibrated on completions of the harmless test prompts."""
    subject = load(DEFAULT_MODEL)
    harmless = [r["text"] for r in rows() if r["split"] == "test" and r["harm"] == "harmless"]
    gate = Gate(subject, pipeline.complete(subject, harmless), request=REQUEST)
    ids = [row["token_ids"] for row in shipped]
    return judges.coherent(judges.repetition(ids), gate.nll(ids), gate.nll_limit)


def test_the_set_is_large_and_of_every_kind(shipped):
    kinds = Counter(row["kind"] for row in shipped if row["broken"])
    assert set(kinds) == {"repetition", "shuffled", "over-strong edit"}
    assert min(kinds.values()) >= 60
    assert kinds.total() >= 200
    assert sum(not row["broken"] for row in shipped) >= 200


def test_texts_are_the_decoded_tokens(shipped):
    tokenizer = load(DEFAULT_MODEL).tokenizer
    for row in shipped:
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"]


def test_normal_completions_are_of_the_grammar_and_broken_ones_are_not(shipped):
    known = make_broken_completions.language()
    assert not [r["text"] for r in shipped if r["broken"] and r["text"] in known]
    normal = [r["text"] in known for r in shipped if not r["broken"]]
    assert np.mean(normal) >= 0.97


def test_the_gate_flags_broken_text_of_every_kind(shipped, coherent):
    broken = np.array([row["broken"] for row in shipped])
    assert (~coherent[broken]).mean() >= 0.95
    for kind in ("repetition", "shuffled", "over-strong edit"):
        of_kind = np.array([row["kind"] == kind for row in shipped])
        assert (~coherent[of_kind]).mean() >= 0.9, kind


def test_the_gate_passes_normal_text(shipped, coherent):
    normal = np.array([not row["broken"] for row in shipped])
    assert (~coherent[normal]).mean() <= 0.05


@pytest.mark.long
def test_the_script_remakes_the_shipped_set(shipped):
    assert list(make_broken_completions.completions(load(DEFAULT_MODEL))) == shipped
