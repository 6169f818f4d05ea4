"""Metrics: values, what they refuse, and how they ship."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.attribution import KINDS, Metric
from refusal_nn.errors import RequestError
from refusal_nn.shipped.metrics import metric_values
from refusal_nn.testing import D_MODEL, plain_module, random_pairs, tiny_model
from tests.attribution._made import attribute

DIRECTION = np.linspace(-1, 1, D_MODEL)
METRICS = {
    "refusal-log-odds": Metric.refusal_log_odds([7, 8]),
    "logit-difference": Metric.logit_difference([7], [8, 9]),
    "projection": Metric.projection(DIRECTION),
    "kl": Metric.kl(),
}


def test_every_metric_is_tried_here():
    assert set(METRICS) == set(KINDS)


def test_hand_worked_values():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    clean = logits[:1]
    odds = metric_values(logits, Metric.refusal_log_odds([0, 1]).plain(), clean)
    torch.testing.assert_close(odds, torch.log(torch.tensor([3.0, 0.25])).double())
    difference = metric_values(logits, Metric.logit_difference([0], [1, 2]).plain(), clean)
    expected = torch.log(torch.tensor([2.0, 0.1 / (0.1 * 0.8) ** 0.5])).double()
    torch.testing.assert_close(difference, expected)
    kl = metric_values(logits, Metric.kl().plain(), clean)
    p = torch.tensor([0.5, 0.25, 0.25]).double()
    q = torch.tensor([0.1, 0.1, 0.8]).double()
    torch.testing.assert_close(kl, torch.stack([p.sum() * 0, (p * (p / q).log()).sum()]))
    along = metric_values(torch.tensor([[3.0, 4.0]]), Metric.projection([0, 2]).plain(), clean)
    torch.testing.assert_close(along, torch.tensor([4.0]).double())


@pytest.mark.parametrize("method", ["clean-corrupted", "exact"])
@pytest.mark.parametrize("name", KINDS)
def test_metrics_of_both_runs_are_those_of_the_plain_model(name, method):
    model, plain = tiny_model("llama", torch.float64), plain_module("llama", torch.float64)
    pairs = random_pairs(2, (4, 6))
    found = attribute(model, pairs, METRICS[name], method=method, level="node")
    for k in range(2):
        rows = [model.chat.tokens(s.texts)[k] for s in (pairs.clean, pairs.corrupted)]
        with torch.no_grad():
            if name == "projection":
                norm = plain.model.norm
                seen = []
                hook = norm.register_forward_pre_hook(
                    lambda m, x, seen=seen: seen.append(x[0][0, -1])
                )
                for row in rows:
                    plain(torch.tensor([row]))
                hook.remove()
                unit = torch.tensor(DIRECTION / np.linalg.norm(DIRECTION))
                expected = [float(x @ unit) for x in seen]
            else:
                a, b = (plain(torch.tensor([r])).logits[0, -1].log_softmax(-1) for r in rows)
                expected = {
                    "kl": [0.0, float((a.exp() * (a - b)).sum())],
                    "logit-difference": [float(x[7] - (x[8] + x[9]) / 2) for x in (a, b)],
                    "refusal-log-odds": [float(x.exp()[[7, 8]].sum().logit()) for x in (a, b)],
                }[name]
        both = [float(found[f"{side}_metric"][k]) for side in ("clean", "corrupted")]
        assert both == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_a_metric_comes_back_from_its_attributes(name):
    again = Metric.from_attrs(METRICS[name].to_attrs())
    assert again.to_attrs() == METRICS[name].to_attrs()


def test_impossible_metrics_are_refused():
    with pytest.raises(RequestError, match="at least one token"):
        Metric.refusal_log_odds([])
    with pytest.raises(RequestError, match="at least one token on each side"):
        Metric.logit_difference([7], [])
    for odd in (["I"], "I", [1.5], [True]):
        with pytest.raises(RequestError, match="takes token ids, not"):
            Metric.refusal_log_odds(odd)
    with pytest.raises(RequestError, match="names token 5 twice"):
        Metric.refusal_log_odds([5, np.int64(5)])
    with pytest.raises(RequestError, match="token 8 is on both sides"):
        Metric.logit_difference([7, 8], [8])
    for bad in (np.zeros(3), np.ones((2, 2)), [np.nan, 1.0]):
        with pytest.raises(RequestError, match="one finite vector"):
            Metric.projection(bad)
