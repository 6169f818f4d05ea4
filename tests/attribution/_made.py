"""Metrics over the tiny vocabulary, and pairs put the way round that they tell apart."""

from __future__ import annotations

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
