"""Pairs over the vocabulary of the tiny random models, and of the planted one."""

from __future__ import annotations

import random
from functools import cache

import pytest

from refusal_nn import load_model
from refusal_nn.models import Model
from refusal_nn.prompts import Pairs
from refusal_nn.testing.words import planted_pairs


def made_pairs(n: int = 3, *, seed: int = 0, splits: tuple[str, ...] = ("test",)) -> Pairs:
    """``n`` pairs a split, of three to six words of which one or two differ."""
    rng = random.Random(seed)
    rows = []
    for split in splits:
        for i in range(n):
            words = [f"w{rng.randrange(7, 52)}" for _ in range(rng.randrange(3, 7))]
            other = list(words)
            for place in rng.sample(range(len(words)), rng.randrange(1, 3)):
                other[place] = f"w{rng.randrange(52, 97)}"
            rows.append(
                {
                    "clean": " ".join(words),
                    "corrupted": " ".join(other),
                    "category": "violence" if i % 2 else "privacy",
                    "split": split,
                    "family": f"{split}-{i}",
                }
            )
    return Pairs.from_rows(rows, name="made")


def planted() -> Pairs:
    """The planted model's pairs; splits share no verb-object pair in any template."""
    rows = []
    for k, (clean, corrupted) in enumerate(planted_pairs()):
        verb, obj = (k // 10) % 6, k % 10
        family = 10 * verb + obj
        rows.append(
            {
                "clean": clean,
                "corrupted": corrupted,
                "category": "planted",
                "split": ("train", "val", "test")[(obj + verb) % 3],
                "family": f"f{family}",
            }
        )
    return Pairs.from_rows(rows, name="planted")


@cache
def planted_model() -> Model:
    return load_model("planted-gate")


@pytest.fixture(scope="session")
def gate() -> Model:
    return planted_model()
