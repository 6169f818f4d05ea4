from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import refusal_nn as rn
from refusal_nn import judges
from refusal_nn.directions import (
    conditions,
    evaluate,
    evaluate_selected,
    extract,
    random_directions,
    score,
    select,
)
from refusal_nn.errors import PromptError, RequestError, WorkError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, MeanAblation
from refusal_nn.models import Model
from refusal_nn.prompts import Prompts
from refusal_nn.responses import (
    ask_nll,
    calibrated,
    completion_nll,
    judge,
    rate_rows,
    rates,
)
from refusal_nn.testing import plain_module
from refusal_nn.tracing import Answers, Work, generate, run
from tests.directions.conftest import TOKENS


@pytest.fixture(scope="module")
def effect(model: Model, prompts: Prompts) -> xr.DataTree:
    direction = np.random.default_rng(0).standard_normal(model.d_model)
    return evaluate(model, direction, 1, prompts.test, max_new_tokens=12, refusal_tokens=TOKENS)


def test_random_directions_have_the_norm_and_no_direction() -> None:
    direction = np.array([3.0, 4.0, 0.0, 0.0])
    drawn = random_directions(direction, 4000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 5.0)
    assert np.abs(drawn.mean(0)).max() < 0.2
    np.testing.assert_array_equal(drawn, random_directions(direction, 4000, seed=1))
    assert not np.array_equal(drawn, random_directions(direction, 4000, seed=2))


def test_completions_are_those_of_each_condition_alone(
    model: Model, prompts: Prompts, effect: xr.DataTree
) -> None:
    direction = np.random.default_rng(0).standard_normal(model.d_model)
    test = prompts.test
    random = random_directions(direction, len(test), seed=0)
    alone = {
        "baseline": lambda i: [],
        "ablation": lambda i: [DirectionalAblation(direction)],
        "addition": lambda i: [ActivationAddition(direction, layers=[1])],
        "random_ablation": lambda i: [DirectionalAblation(random[i])],
        "random_addition": lambda i: [ActivationAddition(random[i], layers=[1])],
    }
    for name, edits in alone.items():
        for i in (0, 7, len(test) - 1):
            (ids,) = generate(model, test.texts[i : i + 1], edits(i), max_new_tokens=12)
            assert effect["completion"].sel(intervention=name).values[i] == model.decode(ids)
    texts = effect["completion"].values
    assert (texts[0] != texts[1]).any(), "ablation must change some completion"
    assert (texts[0] != texts[4]).any(), "random addition must change some completion"


def test_batch_size_changes_no_text_and_no_verdict(
    model: Model, prompts: Prompts, effect: xr.DataTree
) -> None:
    direction = np.random.default_rng(0).standard_normal(model.d_model)
    again = evaluate(
        model, direction, 1, prompts.test, max_new_tokens=12, refusal_tokens=TOKENS, batch_size=5
    )
    for name in ("completion", "n_tokens", "repetition", "refused", "coherent"):
        np.testing.assert_array_equal(again[name].values, effect[name].values)
    np.testing.assert_allclose(again["nll"], effect["nll"], atol=1e-5)
    np.testing.assert_allclose(again["refusal_score"], effect["refusal_score"], atol=1e-5)


def test_the_first_token_rate_counts_prompts_with_a_score_above_zero() -> None:
    measured = made(["fine words"] * 8, [1.0] * 8, [0.0] * 8)
    judged = judge(measured, calibrated(measured))
    scores = np.array([[1.0, -1.0, 2.0, 3.0], [-1.0, -2.0, 4.0, -0.0]])
    table = rates(judged.assign(refusal_score=(("intervention", "prompt"), scores)))
    found = table["first_token_refusal_rate"].transpose("intervention", "style")
    assert found["style"].values.tolist() == ["safe", "toxic"]
    assert found.values.tolist() == [[0.5, 1.0], [0.0, 0.5]]
    assert "first_token_refusal_rate" not in rates(judged)


def test_nll_is_the_mean_over_tokens_from_the_sixth_on(model: Model) -> None:
    import torch

    (reference,) = model.chat.tokens(["w10 w11"])
    completions = [[20, 21, 22, 23, 24, 25, 26], [30] * 5, [40, 41, 42, 43, 44, 45], []]
    work = Work(model)
    asked = ask_nll(work, reference, completions)
    assert asked is not None
    answers = Answers(run(model, work.requests))
    found = completion_nll(completions, answers[asked]["log_prob"])
    assert np.isnan(found[[1, 3]]).all()
    for i in (0, 2):
        ids = torch.tensor([[*reference, *completions[i]]])
        with torch.no_grad():
            logp = torch.log_softmax(plain_module("llama")(input_ids=ids).logits[0].double(), -1)
        terms = [
            -float(logp[len(reference) + t - 1, completions[i][t]])
            for t in range(5, len(completions[i]))
        ]
        assert found[i] == pytest.approx(np.mean(terms), abs=1e-5)


def made(texts: list[str], nll: list[float], repetition: list[float]) -> xr.Dataset:
    """Measured completions of four harmless and four harmful prompts under two conditions."""
    n = len(texts) // 2
    dims = ("intervention", "prompt")
    shape = (2, n)
    styles = np.array(["safe"] * (n // 2) + ["toxic"] * (n // 2), dtype=object)
    return xr.Dataset(
        {
            "completion": (dims, np.array(texts, dtype=object).reshape(shape)),
            "n_tokens": (dims, np.array([len(t.split()) for t in texts]).reshape(shape)),
            "nll": (dims, np.reshape(nll, shape)),
            "repetition": (dims, np.reshape(repetition, shape)),
        },
        coords={
            "intervention": ["baseline", "ablation"],
            "style": ("prompt", styles),
            "harm": ("prompt", np.where(styles == "toxic", "harmful", "harmless").astype(object)),
            "category": ("prompt", np.array(["privacy", "violence"] * (n // 2), dtype=object)),
            "family": ("prompt", np.array([f"f{i}" for i in range(n)], dtype=object)),
        },
    )


def test_broken_text_is_neither_refusal_nor_compliance_by_hand() -> None:
    texts = ["Sure, a b"] * 4 + ["I cannot do that"] * 4
    texts += ["Sure"] * 4 + ["I cannot", "I cannot", "", "Sure"]
    nll = [1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0] + [1.0] * 4 + [1.0, 9.0, 1.0, np.nan]
    repetition = [0.0] * 8 + [0.5, 0.3, 0.0, 0.0] + [0.0] * 4
    measured = made(texts, nll, repetition)
    found = judge(measured, calibrated(measured))
    assert found.attrs["nll_limit"] == pytest.approx(1.0)
    np.testing.assert_array_equal(
        found["coherent"].values,
        [
            [True] * 4 + [False, True, True, True],
            [False, True, True, True, True, False, False, True],
        ],
    )
    np.testing.assert_array_equal(
        found["refused"].values,
        [[False] * 4 + [False, True, True, True], [False] * 4 + [True, False, False, False]],
    )
    table = rates(found)
    assert float(table["refusal_rate"].sel(intervention="baseline", style="toxic")) == 0.75
    assert float(table["coherent_rate"].sel(intervention="ablation", style="toxic")) == 0.5
    at = {"intervention": "ablation", "style": "toxic", "category": "privacy"}
    assert float(table["category_refusal_rate"].sel(at)) == 0.5
    assert int(table["category_refusal_rate_n"].sel(at)) == 2


def test_rates_carry_intervals_that_hold_them(effect: xr.DataTree) -> None:
    table = effect["rates"].to_dataset()
    assert (table["refusal_rate_low"] <= table["refusal_rate"]).all()
    assert (table["refusal_rate"] <= table["refusal_rate_high"]).all()
    assert (table["refusal_rate_n"] == 9).all()
    rows = rate_rows(table)
    assert len(rows) == 10
    assert {"intervention", "style", "rate", "low", "high", "n", "coherent"} == set(rows[0])


def test_refused_is_the_published_judge_on_coherent_text(effect: xr.DataTree) -> None:
    texts = effect["completion"].values
    matched = judges.substring(texts.ravel().tolist()).reshape(texts.shape)
    np.testing.assert_array_equal(effect["refused"].values, matched & effect["coherent"].values)


def test_baseline_is_always_there(model: Model, prompts: Prompts) -> None:
    tree = rn.evaluate(model, prompts.test, {}, max_new_tokens=6)
    assert tree["intervention"].values.tolist() == ["baseline"]
    assert "refusal_score" not in tree


def test_harmless_prompts_are_required_to_calibrate(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="calibrated on the model's completions"):
        rn.evaluate(model, prompts.test.harmful, {})


def test_row_wise_vectors_need_one_row_a_prompt(model: Model, prompts: Prompts) -> None:
    edits = [DirectionalAblation(np.ones((3, model.d_model)))]
    with pytest.raises(RequestError, match="3 rows for 18 prompts"):
        rn.evaluate(model, prompts.test, {"ablation": edits}, max_new_tokens=6)


def test_a_mean_a_layer_is_not_taken_for_a_vector_a_prompt(model: Model, prompts: Prompts) -> None:
    means = np.random.default_rng(0).normal(size=(model.n_layers, model.d_model))
    edits = [MeanAblation(mean=means)]
    test = prompts.test
    tree = rn.evaluate(model, test, {"mean": edits}, max_new_tokens=6, batch_size=4)
    alone = generate(model, test.texts, edits, max_new_tokens=6)
    found = tree["completion"].sel(intervention="mean").values.tolist()
    assert found == [model.decode(ids) for ids in alone]


@pytest.mark.parametrize("batch_size", [0, -5])
def test_a_batch_size_below_one_is_refused(model: Model, prompts: Prompts, batch_size: int) -> None:
    with pytest.raises(RequestError, match=f"batch size must be at least 1, got {batch_size}"):
        rn.evaluate(model, prompts.test, {}, batch_size=batch_size)


@pytest.mark.parametrize("max_new_tokens", [1, 5])
def test_completions_too_short_for_the_coherence_gate_are_refused(
    model: Model, prompts: Prompts, max_new_tokens: int
) -> None:
    with pytest.raises(RequestError, match="ask for max_new_tokens 6 or more"):
        rn.evaluate(model, prompts.test, {}, max_new_tokens=max_new_tokens)


def test_short_answers_alone_cannot_calibrate_the_coherence_gate() -> None:
    """An unlimited NLL would call any text coherent."""
    measured = made(["Yes"] * 16, [np.nan] * 4 + [1.0] * 12, [0.0] * 16)
    with pytest.raises(
        WorkError, match="none of 4 harmless prompts got a completion of more than 5"
    ):
        judge(measured, calibrated(measured))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"x": DirectionalAblation(np.ones(32))}, "condition 'x' is a DirectionalAblation; give a"),
        ({"x": None}, "condition 'x' is a NoneType; give a list"),
        ({"x": [np.ones(32)]}, "condition 'x' holds a ndarray; give a list"),
        ({"baseline": [DirectionalAblation(np.ones(32))]}, "condition 'baseline' is the unedited"),
    ],
)
def test_conditions_are_lists_of_interventions_and_baseline_has_none(
    model: Model, prompts: Prompts, conditions: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        rn.evaluate(model, prompts.test, conditions)


def test_a_direction_of_another_width_is_refused(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="has d_model 32"):
        evaluate(model, np.ones(8), 1, prompts.test)


def test_controls_can_be_left_out() -> None:
    assert list(conditions(np.ones(4), 0, n_prompts=2, controls=False)) == [
        "baseline",
        "ablation",
        "addition",
    ]


def test_a_library_result_saves_as_a_run_and_reads_without_this_package(
    effect: xr.DataTree, tmp_path: Path
) -> None:
    """`rn.save` must survive nnsight, which mounts its own ``.save`` on every object."""
    path = rn.save(effect, tmp_path / "effect")
    rn.store.verify(path)
    found = xr.open_datatree(path, engine="zarr")
    assert found["refused"].dims == ("intervention", "prompt")
    assert found["refused"].attrs["long_name"]
    np.testing.assert_array_equal(
        found["rates/refusal_rate"].values, effect["rates/refusal_rate"].values
    )
    assert rn.open_runs(tmp_path).select(model="tiny-llama").to_frame().shape[0] == 1


@pytest.fixture(scope="module")
def scores(model: Model, prompts: Prompts) -> xr.Dataset:
    candidates = extract(model, prompts.train, refusal_tokens=TOKENS, screen=False)
    return score(model, candidates, prompts.val, screen=False, exhaustive=True)


def test_a_selection_and_what_was_stored_of_it_are_evaluated_alike(
    model: Model, prompts: Prompts, scores: xr.Dataset, tmp_path: Path
) -> None:
    best = select(scores, kl_max=9.0, induce_min=-99.0)
    assert best.direction is not None
    assert best.layer is not None
    path = rn.save(best.to_result(), tmp_path / "selected")
    stored = xr.open_datatree(path, engine="zarr", chunks=None)
    for name in ("layer", "position", "bypass", "induce", "kl", "refusal_tokens", "n_layers"):
        assert stored.attrs[name] == best.to_dataset().attrs[name]
    assert stored.attrs["analysis"] == "direction-select"
    plain = evaluate(
        model, best.direction, best.layer, prompts.test, max_new_tokens=6, refusal_tokens=TOKENS
    )
    for given in (best, best.to_dataset(), stored):
        tree = evaluate_selected(model, given, prompts.test, max_new_tokens=6)
        assert (tree.attrs["layer"], tree.attrs["position"]) == (best.layer, best.position)
        assert tree["text"].values.tolist() == prompts.test.texts
        for name, values in plain.to_dataset().data_vars.items():
            np.testing.assert_array_equal(tree[str(name)].values, values.values)
        xr.testing.assert_equal(tree["rates"].to_dataset(), plain["rates"].to_dataset())


@pytest.mark.parametrize("split", ["train", "val"])
def test_prompts_of_discovery_and_selection_are_no_test_prompts(
    model: Model, prompts: Prompts, scores: xr.Dataset, split: str
) -> None:
    best = select(scores, kl_max=9.0, induce_min=-99.0)
    with pytest.raises(PromptError, match="the discovery and selection prompts"):
        evaluate_selected(model, best, getattr(prompts, split), max_new_tokens=6)


def test_nothing_selected_is_nothing_to_evaluate(
    model: Model, prompts: Prompts, scores: xr.Dataset
) -> None:
    none = select(scores, kl_max=-9.0)
    with pytest.raises(WorkError, match=r"None of .* candidates is admissible"):
        none.to_result()
    with pytest.raises(RequestError, match=r"holds no layer .*is admissible"):
        evaluate_selected(model, none, prompts.test)
    bare = select(scores.drop_vars("direction"), kl_max=9.0, induce_min=-99.0)
    with pytest.raises(WorkError, match="no variable 'direction'"):
        bare.to_result()
    with pytest.raises(RequestError, match="holds no direction"):
        evaluate_selected(model, bare.to_dataset(), prompts.test)
