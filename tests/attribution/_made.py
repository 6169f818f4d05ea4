"""Pairs of random words over the tiny vocabulary, and metrics."""

from __future__ import annotations

import random
from functools import partial

import torch

from refusal_nn.attribution import Metric
from refusal_nn.attribution import attribute as checked_attribute
from refusal_nn.models import Model
from refusal_nn.prompts import Pairs

DIFFERENCE = Metric.logit_difference([7, 8], [9, 10, 11])
LOG_ODDS = Metric.refusal_log_odds([7, 8, 9])


attribute = partial(checked_attribute, check=False)
"""Random models do not tell pairs apart, and scores need not wait for that."""


def made_pairs(n: int = 3, words: tuple[int, ...] = (4,), seed: int = 0) -> Pairs:
    """``n`` pairs that differ in two words; lengths from ``words`` in turn."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        length = words[i % len(words)]
        clean = [f"w{rng.randrange(12, 97)}" for _ in range(length)]
        corrupted = [*clean]
        for k in rng.sample(range(length), 2):
            corrupted[k] = f"w{rng.randrange(12, 97)}"
        labels = {"category": "made", "split": "test", "family": f"pair-{i}"}
        rows.append({"clean": " ".join(clean), "corrupted": " ".join(corrupted), **labels})
    return Pairs.from_rows(rows, name="made")


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    """:data:`LOG_ODDS` of one row of logits."""
    p = logits.softmax(-1)[list(LOG_ODDS.tokens)].sum()
    return torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)


def told_apart(model: Model, pairs: Pairs, metric: Metric) -> Pairs:
    """The pairs with the prompt that has more of the metric as the clean one."""
    found = attribute(model, pairs, metric, method="clean-corrupted", level="node")
    rows = []
    for row, swap in zip(
        pairs.to_rows(),
        (found["clean_metric"] < found["corrupted_metric"]).values,
        strict=True,
    ):
        ends = (row["corrupted"], row["clean"]) if swap else (row["clean"], row["corrupted"])
        rows.append({**row, "clean": ends[0], "corrupted": ends[1]})
    return Pairs.from_rows(rows, name=pairs.name)
