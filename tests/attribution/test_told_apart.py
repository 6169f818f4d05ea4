"""Attribution is of a difference, so there must be one, and it must be the right way round."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from refusal_nn import load_model
from refusal_nn.attribution import Metric, attribute
from refusal_nn.contrasts._told_apart import check_told_apart
from refusal_nn.errors import PromptError
from refusal_nn.models import Model
from refusal_nn.prompts import Pairs
from refusal_nn.runs import Keeping, record
from refusal_nn.store import MemoryRecorder
from tests.patching.conftest import planted


@pytest.fixture(scope="module")
def gate() -> Model:
    return load_model("planted-gate")


@pytest.fixture(scope="module")
def metric(gate: Model) -> Metric:
    return Metric.refusal_log_odds([gate.tokenizer.get_vocab()["I"]])


def swapped(pairs: Pairs) -> Pairs:
    rows = [
        {**row, "clean": row["corrupted"], "corrupted": row["clean"]} for row in pairs.to_rows()
    ]
    return Pairs.from_rows(rows, name="swapped")


def one_class(pairs: Pairs) -> Pairs:
    """Both prompts of a pair harmless, of equal length and one request."""
    rows = pairs.to_rows()
    out = []
    for k, (one, other) in enumerate(pairwise(rows)):
        ends = (one["corrupted"], other["corrupted"])
        if ends[0].split()[:-1] == ends[1].split()[:-1]:
            clean, corrupted = ends[:: (-1) ** k]
            out.append({**one, "clean": clean, "corrupted": corrupted})
    assert len(out) > 10
    return Pairs.from_rows(out, name="one-class")


@pytest.mark.parametrize("method", ["eap", "exact"])
@pytest.mark.parametrize(
    ("change", "message"), [(swapped, "swap the columns"), (one_class, "includes 0|by 0 on")]
)
def test_pairs_without_the_difference_are_refused_and_leave_nothing(
    tmp_path, gate, metric, method, change, message
):
    pairs = change(planted().test[:24])
    recorder = MemoryRecorder()
    with pytest.raises(PromptError, match=message):
        attribute(gate, pairs, metric, method=method, recorder=recorder)
    with pytest.raises(PromptError, match=message):
        record(attribute, gate, pairs, metric, method=method, keep=Keeping(tmp_path))
    assert list(Path(tmp_path).iterdir()) == []
    assert attribute(gate, pairs[:2], metric, method="eap", check=False).sizes["prompt"] == 2


def test_exact_patching_is_not_begun(gate, metric, monkeypatch):
    stages = []
    run = MemoryRecorder.stage

    def noted(self, name, *args):
        stages.append(name)
        return run(self, name, *args)

    monkeypatch.setattr(MemoryRecorder, "stage", noted)
    with pytest.raises(PromptError, match="swap"):
        attribute(gate, swapped(planted().test[:6]), metric, method="exact")
    assert stages == ["metrics"]


def test_a_metric_without_a_sign_may_point_either_way(gate):
    pairs = planted().test[:6]
    high, low = np.arange(6) + 5.0, np.arange(6) / 10
    check_told_apart(pairs, low, high, Metric.logit_difference([1], [2]))
    check_told_apart(pairs, high, low, Metric.refusal_log_odds([1]))
    with pytest.raises(PromptError, match="swap the columns"):
        check_told_apart(pairs, low, high, Metric.refusal_log_odds([1]))
    with pytest.raises(PromptError, match="includes 0"):
        check_told_apart(pairs, np.resize([0.0, 1.0], 6), low, Metric.logit_difference([1], [2]))


def test_one_family_has_no_interval_and_needs_a_difference(gate):
    rows = [{**row, "family": "one"} for row in planted().test[:4].to_rows()]
    pairs, values = Pairs.from_rows(rows), np.arange(4.0)
    check_told_apart(pairs, values + 1, values, Metric.refusal_log_odds([1]))
    with pytest.raises(PromptError, match="differs by 0 on average"):
        check_told_apart(pairs, values, values, Metric.refusal_log_odds([1]))
