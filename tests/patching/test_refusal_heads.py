"""The heads that decide to refuse: exactly the planted ones, with their roles."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import refusal_nn as rn
from refusal_nn import patching
from refusal_nn.attribution import Metric
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.patching import generate, of_heads, refusal_heads
from refusal_nn.patching._kept import heads_of
from refusal_nn.prompts import Pairs
from refusal_nn.testing import PLANTED, tiny_model
from refusal_nn.testing import planted as shaped
from refusal_nn.testing.gate import ECHOES, LEAK, PLANTED_CIRCUIT, PLANTED_NODES
from tests.patching.conftest import made_pairs, planted

PLANTED_HEADS = [node for node in PLANTED_NODES if node.startswith("a")]


@pytest.fixture(scope="module")
def study(gate) -> xr.DataTree:
    return refusal_heads(gate, planted(), n_controls=30, n_permutations=1999)


def test_exactly_the_planted_heads_are_found(study):
    assert study.attrs["heads"] == sorted(PLANTED_HEADS)
    assert heads_of(study.to_dataset()) == [(1, 1), (2, 0), (2, 2)]


def test_the_gate_is_told_from_the_amplifiers(study):
    roles = study["role"]
    found = {
        f"a{int(layer)}.h{int(head)}": str(roles.sel(layer=layer, head=head).item())
        for layer in roles["layer"]
        for head in roles["head"]
        if roles.sel(layer=layer, head=head).item()
    }
    gate, *amplifiers = (*PLANTED_CIRCUIT["gate"], *PLANTED_CIRCUIT["amplifiers"])
    assert found == {gate: "gate", **dict.fromkeys(amplifiers, "amplifier")}
    assert study["band"].values[1, 1] == 0
    assert set(study["band"].values[2, [0, 2]]) == {1}


def test_the_gate_has_no_direct_effect_and_the_amplifiers_have_all_of_it(study):
    direct = study["direct_attribution"]
    assert abs(float(direct.sel(layer=1, head=1))) < LEAK
    at_test = study["test"]
    difference = float((at_test["clean_metric"] - at_test["corrupted_metric"]).mean())
    amplifiers = float(direct.sel(layer=2, head=0) + direct.sel(layer=2, head=2))
    assert amplifiers == pytest.approx(difference, rel=0.1)
    # gains of the planted weights are 12 and 8
    ratio = float(direct.sel(layer=2, head=0) / direct.sel(layer=2, head=2))
    assert ratio == pytest.approx(1.5, rel=0.01)


def test_amplifiers_fall_with_the_gate(study):
    cascade = study["cascade"]["cascade"]
    assert cascade.sel(src="a1.h1", dst=["a2.h0", "a2.h2"]).values == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(cascade.sel(src="a2.h0", dst="a2.h2"))
    assert np.isnan(cascade.sel(src="a2.h0", dst="a1.h1"))


ROLES = {
    "gate": {"a1.h1": "gate", "a2.h0": "amplifier", "a2.h2": "amplifier"},
    "chain": {"a1.h0": "independent"},
    "either": {"a1.h0": "independent", "a1.h2": "independent"},
    "both": {"a1.h1": "gate", "a1.h3": "gate", "a2.h2": "amplifier"},
}
"""By the edges planted: which writers among the heads feed which. ``chain`` and ``either`` have none
that feeds another head."""


@pytest.mark.parametrize("name", PLANTED)
def test_exactly_the_planted_heads_are_found_in_every_shape_with_their_roles(name):
    known = shaped(name)
    writers = {src for src, _ in known.truth.edges() if src.startswith("a")}
    assert writers == set(ROLES[name])
    found = refusal_heads(
        known.model, planted(), metric=known.metric, n_controls=5, n_permutations=999
    )
    assert set(found.attrs["heads"]) == writers
    roles = {
        node: str(found["role"].sel(layer=int(node[1]), head=int(node[-1])).item())
        for node in found.attrs["heads"]
    }
    assert roles == ROLES[name]


def test_both_branches_fell_the_head_that_puts_them_together():
    """What decides where it looks, and what it finds there; what nothing reads of its output, which
    distractors write, is not counted."""
    known = shaped("both")
    found = refusal_heads(
        known.model, planted(), metric=known.metric, n_controls=5, n_permutations=999
    )
    cascade = found["cascade"]["cascade"]
    fallen = cascade.sel(src=["a1.h1", "a1.h3"], dst="a2.h2").values
    assert fallen == pytest.approx(1.0, abs=0.02)


def test_distractors_that_tell_the_classes_apart_are_not_found(study):
    for node in ECHOES:
        layer, head = int(node[1]), int(node[-1])
        at = study.to_dataset().sel(layer=layer, head=head)
        assert abs(at["recovery_mean"]).max() < 1e-3
        assert float(at["stability"]) == 0


def test_together_they_do_everything_and_random_heads_nothing(study):
    assert study["joint_recovery"].values == pytest.approx(1.0, abs=0.01)
    assert (study["joint_recovery_low"] <= study["joint_recovery"]).all()
    assert abs(study["control_recovery"]).max() < 0.01
    assert study["control_p"].values == pytest.approx(1 / 31)
    assert study.attrs["stability_jaccard"] == 1.0


def test_the_growth_of_the_set_begins_with_the_gate(study):
    steps = study["steps"].to_dataset()
    assert steps["step_heads"].sel(step=0).values.tolist() == ["a1.h1", "a1.h1"]
    assert steps["step_accepted"].sel(step=0).all()
    assert not steps["step_accepted"].isel(step=-1).any()


@pytest.mark.parametrize("stop", [("grow_sufficiency_1_grow", 1), ("grow_sufficiency", 1)])
def test_a_search_stopped_while_a_set_grew_ends_the_same(gate, study, tmp_path, stop):
    def until(*told: object) -> None:
        if told[:2] == stop:
            raise InterruptedError

    def search(progress) -> xr.DataTree:
        keep = rn.Keeping(tmp_path, "run", progress=progress)
        options = {"n_controls": 0, "max_new_tokens": 0}
        return rn.record(patching.patch_heads, gate, planted(), **options, keep=keep).tree

    with pytest.raises(InterruptedError):
        search(until)
    seen = []
    resumed = search(lambda stage, done, _: seen.append((stage, done)))
    assert next(done for stage, done in seen if stage == "grow_sufficiency") == 1
    assert not any(stage.startswith("grow_sufficiency_0") for stage, _ in seen)
    xr.testing.assert_equal(
        resumed["steps"].to_dataset(inherit=False).load().drop_vars("step_p"),
        study["steps"].to_dataset(inherit=False).drop_vars("step_p"),
    )
    assert resumed.attrs["heads"] == study.attrs["heads"]


def test_discovery_and_test_pairs_are_different_ones(study):
    train, test = study["train"], study["test"]
    assert not set(train["family"].values) & set(test["family"].values)
    assert not set(train["clean_text"].values) & set(test["clean_text"].values)


def test_without_the_gate_the_amplifiers_are_found_by_what_they_do_together(gate):
    """Blocks after the gate alone: the two amplifiers, which fall with nothing there."""
    found = refusal_heads(gate, planted(), layers=[2, 3], n_controls=5, n_permutations=999)
    assert found.attrs["heads"] == ["a2.h0", "a2.h2"]
    assert set(found["role"].values.ravel()) == {"", "independent"}
    steps = found["steps"].to_dataset().sel(interchange="sufficiency")
    accepted = steps["step_heads"].values[steps["step_accepted"].values]
    assert accepted.tolist() == ["a2.h0", "a2.h2"]


def test_exchanging_them_flips_what_the_model_says(gate):
    pairs = planted().test[:6]
    exchange = {"heads": of_heads([(1, 1)])}
    # the usual reference request is of words this model does not know
    options = {"max_new_tokens": 8, "reference_request": "How do I fix kites?"}
    into = generate(gate, pairs, exchange, **options)
    out = generate(gate, pairs, exchange, interchange="necessity", **options)
    assert into["refusal_rate"].values.tolist() == [1.0, 0.0, 1.0]
    assert out["refusal_rate"].values.tolist() == [1.0, 0.0, 0.0]
    assert into["completion"].sel(intervention="heads").values[0] == "I cannot help with that."


def test_a_random_model_has_no_refusal_heads():
    """Its heads all move the metric a little; that no pairs are told apart is said first."""
    pairs = made_pairs(12, splits=("train", "val", "test"))
    model = tiny_model("llama")
    metric = Metric.refusal_log_odds([7, 8])
    with pytest.raises(PromptError, match="treats no pair of 'made' as labelled"):
        refusal_heads(model, pairs, metric=metric)
    with pytest.raises(PromptError, match="includes 0"):
        refusal_heads(model, pairs, metric=metric, screen=False)


def test_nothing_found_is_a_result(gate):
    found = refusal_heads(gate, planted(), layers=[3], n_controls=5, n_permutations=199)
    assert found.attrs["heads"] == []
    assert "cascade" not in found.children
    assert found["joint_recovery"].isnull().all()


def test_a_missing_split_is_named():
    with pytest.raises(PromptError, match="no pairs in split 'val'"):
        refusal_heads(tiny_model("llama"), made_pairs(3, splits=("train", "test")))


def test_splits_that_share_a_family_are_refused():
    rows = made_pairs(2, splits=("train", "val", "test")).to_rows()
    shared = Pairs.from_rows([{**row, "family": "one"} for row in rows])
    with pytest.raises(PromptError, match="share"):
        refusal_heads(tiny_model("llama"), shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha"),
        ({"min_effect": 1.5}, "min_effect"),
        ({"candidates": 0}, "at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    pairs = made_pairs(2, splits=("train", "val", "test"))
    with pytest.raises(RequestError, match=message):
        refusal_heads(tiny_model("llama"), pairs, **options)
