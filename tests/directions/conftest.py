"""A tiny random Llama and prompts of both classes over its vocabulary."""

from __future__ import annotations

import random

import pytest

from refusal_nn.models import Model
from refusal_nn.prompts import Prompts
from refusal_nn.testing import tiny_model

TOKENS = [7, 8, 9]


def made_prompts(n: int = 9, seed: int = 0) -> Prompts:
    """``n`` prompts of each class and split, of three to eight words."""
    rng = random.Random(seed)
    rows = [
        {
            "text": " ".join(f"w{rng.randrange(7, 97)}" for _ in range(rng.randrange(3, 9))),
            "category": "violence" if i % 2 else "privacy",
            "harm": "harmful" if style == "toxic" else "harmless",
            "style": style,
            "split": split,
            "source": "made",
            "family": f"{split}-{style}-{i}",
        }
        for split in ("train", "val", "test")
        for style in ("toxic", "safe")
        for i in range(n)
    ]
    return Prompts.from_rows(rows, name="made")


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    return made_prompts()


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model("llama")
