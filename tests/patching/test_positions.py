"""Patching over positions: what it says of the planted circuit, what it refuses, what it survives."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from refusal_nn.attribution import Metric
from refusal_nn.errors import ModelError, PromptError, RequestError
from refusal_nn.patching import Swap, align, generate, heads, positions, refusal_heads
from refusal_nn.patching._recovery import effects, mean_recovery, recovery
from refusal_nn.prompts import Pairs
from refusal_nn.store import MemoryRecorder, annotate
from refusal_nn.testing import tiny_model
from tests.patching.conftest import made_pairs, planted

METRIC = Metric.projection(np.arange(1.0, 33.0))


def told_apart(n: int = 4) -> Pairs:
    """Pairs of the tiny Llama whose clean prompt has the larger projection."""
    pairs = made_pairs(n)
    found = positions(
        tiny_model("llama"),
        Pairs.from_rows([{**row, "family": "one"} for row in pairs.to_rows()]),
        metric=METRIC,
        layers=[0],
        sites=["resid_pre"],
    )
    rows = pairs.to_rows()
    for row, up in zip(rows, found["clean_metric"] > found["corrupted_metric"], strict=True):
        if not up:
            row["clean"], row["corrupted"] = row["corrupted"], row["clean"]
    return Pairs.from_rows(rows, name="made")


@pytest.fixture(scope="module")
def circuit(gate) -> xr.Dataset:
    return positions(gate, planted().test)


def test_the_planted_signal_moves_from_the_object_to_the_last_token(circuit):
    mean = circuit["recovery_mean"]
    length = circuit.sizes["position"]
    residual = mean.sel(site="resid_pre")
    # the object is where the pairs differ; two tokens (". or ?", the template's end) come after it
    at_object = residual.sel(position=slice(None, -2)).max("position")
    at_last = residual.sel(position=-1)
    assert at_object.sel(layer=[0, 1]).values == pytest.approx(1.0, abs=0.02)
    assert abs(at_object.sel(layer=[2, 3])).max() < 0.02
    assert abs(at_last.sel(layer=[0, 1])).max() < 0.02
    assert at_last.sel(layer=[2, 3]).values == pytest.approx(1.0, abs=0.02)
    assert mean.sel(site="mlp_out", layer=0).max() == pytest.approx(1.0, abs=0.02)
    assert mean.sel(site="attn_out", layer=1, position=-1) == pytest.approx(1.0, abs=0.02)
    assert mean.sel(site="attn_out", layer=2, position=-1) == pytest.approx(1.0, abs=0.02)
    assert length == len(align_positions(circuit))


def align_positions(table: xr.Dataset) -> list[int]:
    return table["position"].values.tolist()


class NoPass(MemoryRecorder):
    """A recorder for a request that must be refused before its first pass."""

    def stage(self, name, *args, **kwargs):
        raise AssertionError(f"stage {name!r} was run")


@pytest.mark.parametrize("wrong", [{"layers": [9]}, {"positions": [-99]}, {"batch_size": 0}])
@pytest.mark.parametrize("function", [positions, heads, refusal_heads])
def test_what_can_be_refused_without_a_pass_is(function, wrong):
    pairs = made_pairs(4, splits=("train", "val", "test"))
    with pytest.raises(RequestError):
        function(tiny_model("llama"), pairs, recorder=NoPass(), **wrong)


def test_necessity_tells_the_same_of_a_chain(gate, circuit):
    back = positions(gate, planted().test, interchange="necessity")
    assert np.allclose(back["recovery_mean"], circuit["recovery_mean"], atol=0.05)
    assert back.attrs["interchange"] == "necessity"


def test_intervals_hold_the_mean_and_the_result_is_declared(circuit):
    assert (circuit["recovery_mean_low"] <= circuit["recovery_mean"] + 1e-12).all()
    assert (circuit["recovery_mean"] <= circuit["recovery_mean_high"] + 1e-12).all()
    annotate(circuit)


def test_tokens_before_the_first_difference_carry_nothing(gate):
    pairs = planted().test[:4]
    aligned = align(gate, pairs)
    before = min(aligned.first_difference) - 1
    found = positions(gate, pairs, positions=[before, -1], sites=["resid_pre"])
    assert abs(found["recovery"].sel(position=before)).max() < 1e-6


def test_refusal_tokens_are_found_where_none_are_given(circuit, gate):
    (token,) = circuit.attrs["metric_tokens"]
    assert gate.decode([token]) == "I"


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_the_result_does_not_depend_on_the_batch_size(batch_size):
    model, pairs = tiny_model("llama", torch.float64), told_apart()
    whole = positions(model, pairs, metric=METRIC)
    found = positions(model, pairs, metric=METRIC, batch_size=batch_size)
    assert np.abs(found["patched_metric"] - whole["patched_metric"]).max() < 1e-10
    alone = heads(model, pairs, metric=METRIC, n_permutations=99)
    by_few = heads(model, pairs, metric=METRIC, n_permutations=99, batch_size=batch_size)
    assert np.abs(alone["recovery"] - by_few["recovery"]).max() < 1e-9


def test_the_order_of_pairs_is_kept():
    model, pairs = tiny_model("llama", torch.float64), told_apart()
    found = positions(model, pairs, metric=METRIC, layers=[1])
    turned = positions(model, pairs[::-1], metric=METRIC, layers=[1])
    assert found["prompt_id"].values.tolist() == pairs.pair_id.tolist()
    assert np.allclose(turned["recovery"].values[::-1], found["recovery"].values, atol=1e-9)


def test_the_dry_run_gives_the_same_numbers():
    pairs = told_apart()
    here = positions(tiny_model("llama"), pairs, metric=METRIC, layers=[1, 2])
    there = positions(tiny_model("llama", backend="dry-run"), pairs, metric=METRIC, layers=[1, 2])
    assert np.allclose(here["patched_metric"], there["patched_metric"], atol=1e-5)


def test_a_projection_ends_the_blocks_where_it_is_read():
    metric = Metric.projection(np.arange(1.0, 33.0), layer=2)
    pairs = Pairs.from_rows([{**r, "family": "one"} for r in told_apart().to_rows()])
    found = positions(tiny_model("llama"), pairs, metric=metric)
    assert found["layer"].values.tolist() == [0, 1]
    assert heads(tiny_model("llama"), pairs, metric=metric, n_permutations=9)["layer"].size == 2
    with pytest.raises(RequestError, match=r"in 0\.\.1"):
        positions(tiny_model("llama"), pairs, metric=metric, layers=[2])


def test_pairs_the_model_treats_alike_are_left_out_and_named(gate):
    pairs = planted().test
    rows = pairs.to_rows()[:6]
    # two harmless objects: the model answers both
    odd = {**rows[0], "clean": "How do I clean lamps?", "corrupted": "How do I clean boats?"}
    mixed = Pairs.from_rows([*rows[1:], odd], name="mixed")
    found = positions(gate, mixed, layers=[1], sites=["resid_pre"])
    assert found.sizes["prompt"] == 5
    assert found.attrs["dropped_pairs"] == [mixed.pair_id[-1]]
    kept = positions(gate, mixed, layers=[1], sites=["resid_pre"], screen=False)
    assert kept.sizes["prompt"] == 6


def test_misaligned_pairs_are_named_with_their_lengths():
    rows = made_pairs(2).to_rows()
    rows[1]["corrupted"] += " w9"
    with pytest.raises(PromptError, match=r"pair 2 of 'uneven' is not aligned.* tokens") as caught:
        positions(tiny_model("llama"), Pairs.from_rows(rows, name="uneven"), metric=METRIC)
    lengths = [len(r) for r in tiny_model("llama").chat.tokens([rows[1]["clean"]])]
    assert f"has {lengths[0]} tokens" in str(caught.value)
    assert f"has {lengths[0] + 1}" in str(caught.value)


def test_pairs_of_the_same_tokens_are_refused():
    rows = made_pairs(1).to_rows()
    rows[0] |= {"clean": "w7 unknown", "corrupted": "w7 unseen"}
    with pytest.raises(PromptError, match="same tokens"):
        align(tiny_model("llama"), Pairs.from_rows(rows))


def test_a_difference_that_cannot_be_told_from_zero_is_refused():
    rows = told_apart().to_rows()
    for row in rows[::2]:  # the other way round, they cancel the rest
        row["clean"], row["corrupted"] = row["corrupted"], row["clean"]
    pairs = Pairs.from_rows(rows, name="both")
    with pytest.raises(PromptError, match=r"interval \(.*\) that includes 0"):
        positions(tiny_model("llama"), pairs, metric=METRIC)


def test_pairs_of_one_class_are_refused(gate):
    """A model that answers all of them has no refusal to move."""
    rows = [
        {
            "clean": f"How do I {verb} lamps?",
            "corrupted": f"How do I {verb} boats?",
            "category": "tame",
            "split": "test",
            "family": verb,
        }
        for verb in ("build", "sell", "fix")
    ]
    metric = Metric.refusal_log_odds(gate.tokenizer("I", add_special_tokens=False)["input_ids"])
    with pytest.raises(PromptError, match="refuses 0 harmful and 0 harmless prompts"):
        positions(gate, Pairs.from_rows(rows, name="tame"), metric=metric)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": ["z"]}, RequestError, "has heads"),
        ({"sites": ["nowhere"]}, ModelError, "no site 'nowhere'"),
        ({"sites": []}, RequestError, "at least one"),
        ({"interchange": "both"}, RequestError, "sufficiency, necessity"),
        ({"layers": [7]}, RequestError, r"in 0\.\.2"),
        ({"layers": [1, 1]}, RequestError, "name each once"),
        ({"positions": [0]}, RequestError, "negative"),
        ({"positions": [-40]}, RequestError, "the shortest pair has"),
        ({"metric": Metric.refusal_log_odds([999])}, RequestError, "outside the vocabulary"),
    ],
)
def test_what_is_not_there_is_named(options, error, message):
    with pytest.raises(error, match=message):
        positions(tiny_model("llama"), told_apart(), **{"metric": METRIC, **options})


@pytest.mark.parametrize(
    ("call", "old"),
    [
        (lambda **given: positions(tiny_model("llama"), told_apart(), **given), "direction"),
        (lambda **given: heads(tiny_model("llama"), told_apart(), **given), "directions"),
        (
            lambda **given: generate(
                tiny_model("llama"), made_pairs(), {"one": [Swap("z", 0)]}, **given
            ),
            "direction",
        ),
    ],
)
def test_the_old_word_for_interchange_is_taken_with_a_warning(call, old):
    with (
        pytest.warns(DeprecationWarning, match="is now interchange"),
        pytest.raises(RequestError, match="interchange 'up' is not one of sufficiency, necessity"),
    ):
        call(**{old: ["up"] if old == "directions" else "up"})


def test_heads_need_a_direction_once():
    with pytest.raises(RequestError, match="each once"):
        heads(tiny_model("llama"), told_apart(), interchange=["necessity"] * 2, metric=METRIC)


@pytest.mark.parametrize(
    ("exchanges", "message"),
    [
        ({}, "at least one"),
        ({"harmful": [Swap("resid_pre", 0, (-1,))]}, "none harmful or harmless"),
        ({"far": [Swap("resid_pre", 0, (-90,))]}, "shortest pair"),
        ({"head": [Swap("z", 0, None, (9,))]}, "which has 4"),
        ({"head": [Swap("mlp_out", 0, None, (1,))]}, "which has 0"),
    ],
)
def test_exchanges_that_are_not_there_are_named(exchanges, message):
    with pytest.raises(RequestError, match=message):
        generate(tiny_model("llama"), made_pairs(), exchanges, max_new_tokens=2)


def test_recovery_of_a_worked_case():
    patched = np.array([[1.0, 4.0], [2.0, 0.0]])
    corrupted, clean = np.array([1.0, 0.0]), np.array([5.0, 4.0])
    base = SimpleNamespace(clean=clean, corrupted=corrupted)
    into = effects(base, patched, "sufficiency")
    assert into.tolist() == [[0.0, 3.0], [2.0, 0.0]]
    out = effects(base, patched, "necessity")
    assert out.tolist() == [[4.0, 1.0], [2.0, 4.0]]
    assert recovery(into, clean - corrupted).tolist() == [[0.0, 0.75], [0.5, 0.0]]
    assert np.isnan(recovery(into, np.array([0.0, 4.0]))[0]).all()
    value, low, high, method = mean_recovery(
        np.repeat(into, 20, axis=0), np.full(40, 4.0), cluster=np.arange(40), n_resamples=999
    )
    assert value.tolist() == [0.25, 0.375]
    assert (low < value).all()
    assert (high > value).all()
    assert "paired BCa" in method


def test_a_stage_is_not_computed_twice():
    recorder = MemoryRecorder()
    done: list[tuple[str, int, int]] = []
    recorder.progress = lambda stage, k, n: done.append((stage, k, n))
    pairs = told_apart()
    first = positions(tiny_model("llama"), pairs, metric=METRIC, recorder=recorder)
    n = len(done)
    again = positions(tiny_model("llama"), pairs, metric=METRIC, recorder=recorder)
    assert len(done) == n
    xr.testing.assert_identical(first, again)


@pytest.mark.parametrize("size", [0, -5])
@pytest.mark.parametrize("analysis", ["positions", "heads", "refusal_heads", "generate"])
def test_a_batch_holds_at_least_one_row(analysis, size):
    from refusal_nn import patching

    pairs = made_pairs(2, splits=("train", "val", "test"))
    args = ({"one": patching.of_heads([(1, 0)])},) if analysis == "generate" else ()
    with pytest.raises(RequestError, match=f"batch size must be at least 1, got {size}"):
        getattr(patching, analysis)(tiny_model("llama"), pairs, *args, batch_size=size)
