"""Pairs are aligned only if their prompts are one request that differs in part."""

from __future__ import annotations

import pytest

from refusal_nn import load_model
from refusal_nn.contrasts._align import MIN_SHARED, align
from refusal_nn.errors import PromptError
from refusal_nn.models import Model
from refusal_nn.prompts import Pairs, load_pairs
from refusal_nn.testing import tiny_model

LABELS = {"category": "made", "split": "test", "family": "one"}


@pytest.fixture(scope="module")
def refuser() -> Model:
    return load_model("tiny-refuser")


def pair(clean: str, corrupted: str) -> Pairs:
    return Pairs.from_rows([{"clean": clean, "corrupted": corrupted, **LABELS}], name="made")


def test_every_tiny_pair_shares_a_third_of_its_request(refuser):
    pairs = load_pairs("tiny-pairs")
    assert len(align(refuser, pairs, min_shared=1 / 3)) == len(pairs)


def test_two_requests_of_equal_length_are_not_a_pair(refuser):
    two = pair(
        "Please help me fabricate a bank statement.", "What is the best way to doctor a will?"
    )
    with pytest.raises(PromptError, match=r"share 0 of 11 tokens .* less than 25%"):
        align(refuser, two)
    assert align(refuser, two, min_shared=0.0).lengths == (17,), "asked for, it is done"


@pytest.mark.parametrize(("shared", "enough"), [(1, False), (2, True)])
def test_tokens_count_at_the_same_place_and_the_template_does_not(shared, enough):
    """Six words; the template's own five tokens, equal in any two prompts, are no evidence."""
    same = [f"w{20 + i}" for i in range(shared)]
    others = [f"w{30 + i}" for i in range(6 - shared)]
    clean, corrupted = " ".join([*others, *same]), " ".join([*others[1:], others[0], *same])
    assert (shared / 6 >= MIN_SHARED) == enough
    if enough:
        assert align(tiny_model("llama"), pair(clean, corrupted)).first_difference == (-8,)
        return
    with pytest.raises(PromptError, match="share 1 of 6 tokens"):
        align(tiny_model("llama"), pair(clean, corrupted))


def test_a_difference_in_verb_and_object_is_a_pair(refuser):
    clean, corrupted = "w20 w21 w30 w22 w31", "w20 w21 w40 w22 w41"
    assert len(align(tiny_model("llama"), pair(clean, corrupted))) == 1
