"""Evaluation on models whose circuit is known, and against runs counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from refusal_nn.attribution import EdgeGraph, Metric
from refusal_nn.circuits import (
    Circuit,
    cross_faithfulness,
    discover,
    evaluate,
    random_circuits,
    smallest,
)
from refusal_nn.circuits._ablation import means_of
from refusal_nn.errors import InterventionError, PromptError, RequestError
from refusal_nn.prompts import Pairs
from refusal_nn.store import MemoryRecorder
from refusal_nn.testing import (
    PLANTED,
    CircuitRuns,
    plain_module,
    planted,
    planted_pairs,
    tiny_model,
)
from refusal_nn.testing.words import HARMFUL, HARMLESS

QUICK = {"n_resamples": 199}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_circuit_is_faithful_complete_minimal_and_no_accident(name):
    p = planted(name)
    tree = evaluate(
        p.model, p.truth, planted_pairs()["test"], p.metric, draws=39, minimality=True, **QUICK
    )
    root = tree.to_dataset()
    assert float(root["faithfulness"]) == pytest.approx(1, abs=0.01)
    assert float(root["faithfulness_low"]) <= float(root["faithfulness_high"])
    assert float(root["completeness"]) == pytest.approx(0, abs=0.01)
    # every planted edge is needed
    assert tree["minimality"]["edge_effect"].values.min() > 0.05
    # of 39 draws the smallest p-value there is, but for draws of the planted circuit itself: few
    # live circuits of a handful of edges lie between the same layers
    p_random, p_matched = tree["null"]["p_value"].values
    assert p_random == 1 / 40
    drawn = random_circuits(p.truth, 39, kind="layer-matched")
    itself = (drawn & p.truth.kept).sum((1, 2)) == p.truth.n_kept
    assert itself.sum() < 10
    assert p_matched == (1 + itself.sum()) / 40
    # and a ranking that knows it reaches it at once
    grid = tree["grid"].to_dataset()
    enough = grid["fraction"].values * p.graph.n_edges >= p.truth.n_kept
    enough &= np.floor(grid["fraction"].values * p.graph.n_edges) >= p.truth.n_kept
    assert np.allclose(grid["faithfulness"].sel(ranking="signed").values[enough], 1, atol=0.01)
    assert float(root["cmd"]) < 0.06
    assert float(root["cpr"]) > 0.94
    assert tree["edges"]["in_circuit"].values.sum() == p.truth.n_kept


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_a_planted_circuit_needs_its_constants_under_other_ablations(ablation):
    """Zero takes the constants away too, so what is planted alone does nothing sensible there; the
    whole model is still the whole model."""
    p = planted("gate")
    options = {"ablation": ablation, "discovery": planted_pairs()["train"], "nulls": (), **QUICK}
    tree = evaluate(p.model, p.truth, planted_pairs()["test"], p.metric, **options)
    table = tree.to_dataset()["circuit_metric"]
    plain = evaluate(
        p.model, p.truth, planted_pairs()["test"], p.metric, nulls=(), grid=False, **QUICK
    )
    whole = plain.to_dataset()["circuit_metric"].sel(circuit="model").values
    assert np.allclose(table.sel(circuit="model").values, whole, atol=1e-5)
    if ablation == "mean":  # of harmless prompts, whose values along other edges do not matter
        assert float(tree["faithfulness"]) == pytest.approx(1, abs=0.02)


def test_a_mean_is_over_the_discovery_prompts_that_reach_a_position_from_the_end():
    p = planted("gate")
    means = means_of(p.model, planted_pairs()["train"], 3, MemoryRecorder())
    module = p.model.module
    rows = p.model.chat.tokens(planted_pairs()["train"].corrupted.texts)
    seen: dict[str, list] = {"input": [], "z": [], "mlp": []}
    hooks = [
        module.model.embed_tokens.register_forward_hook(lambda m, a, o: seen["input"].append(o[0])),
        module.model.layers[2].self_attn.o_proj.register_forward_pre_hook(
            lambda m, a: seen["z"].append(a[0][0])
        ),
        module.model.layers[1].mlp.register_forward_hook(lambda m, a, o: seen["mlp"].append(o[0])),
    ]
    with torch.no_grad():
        for row in rows:
            torch.nn.Module.__call__(module, torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    width = max(map(len, rows))
    assert means["input"][0].shape[1] == width
    assert len({len(row) for row in rows}) > 1
    for back in (1, 3, width):
        for name, held in (
            ("input", means["input"][0][0]),
            ("z", means["z"][2][0].flatten(1)),
            ("mlp", means["mlp"][1][0]),
        ):
            expected = torch.stack([x[-back] for x in seen[name] if len(x) >= back]).mean(0)
            assert torch.allclose(held[-back].float(), expected, atol=1e-5)


def test_mean_ablation_is_the_run_built_edge_by_edge():
    family = "llama"
    model = tiny_model(family)
    graph = EdgeGraph.of(model.arch)
    sets = {
        name: Pairs.from_rows(
            [
                {
                    "clean": f"w{a} w{a + 1} w{a + 2}",
                    "corrupted": f"w{a} w{a + 3} w{a + 4}",
                    "category": "x",
                    "split": "test",
                    "family": f"{name}{a}",
                }
                for a in starts
            ],
            name=name,
        )
        for name, starts in (("train", (10, 20, 30)), ("test", (40, 50)))
    }
    rng = np.random.default_rng(0)
    kept = graph.mask & (rng.random(graph.mask.shape) < 0.5)
    metric = Metric.logit_difference([11], [12])
    tree = evaluate(
        model,
        Circuit(graph, kept),
        sets["test"],
        metric,
        ablation="mean",
        discovery=sets["train"],
        grid=False,
        nulls=(),
        **QUICK,
    )
    reference = CircuitRuns(family, plain_module(family))
    runs = [reference.run(row)[1] for row in model.chat.tokens(sets["train"].corrupted.texts)]
    means = {name: torch.stack([r[name] for r in runs]).mean(0) for name in runs[0]}
    names = {(graph.src[s], graph.dst[d]) for s, d in np.argwhere(kept)}
    for n, row in enumerate(model.chat.tokens(sets["test"].clean.texts)):
        logits, _ = reference.run(row, lambda s, d: (s, d) in names, means)
        found = float(tree["circuit_metric"].sel(circuit="circuit").values[n])
        assert found == pytest.approx(float(logits[11] - logits[12]), abs=1e-4)


@pytest.mark.parametrize(
    "metric",
    [
        Metric.kl(),
        Metric.projection(np.eye(96)[3]),
        Metric.projection(np.eye(96)[2], layer=2),
        Metric.logit_difference([40], [41]),
    ],
    ids=lambda m: f"{m.kind}-{m.layer}",
)
def test_every_metric_is_measured_in_a_circuits_run(metric):
    p = planted("gate")
    half = np.random.default_rng(1).random(p.graph.mask.shape) < 0.5
    circuit = Circuit(p.graph, p.graph.mask & half)
    some = planted_pairs()["test"][:4]
    if metric.kind == "logit-difference":
        vocabulary = p.model.tokenizer.get_vocab()
        metric = Metric.logit_difference([vocabulary["I"]], [vocabulary["Sure"]])
    options = {"grid": False, "nulls": (), **QUICK}
    tree = evaluate(p.model, circuit, some, metric, **options)
    alone = evaluate(p.model, circuit, some, metric, batch_size=1, **options)
    a, b = (t["circuit_metric"].values for t in (tree, alone))
    assert np.allclose(a, b, atol=1e-4)
    if metric.kind == "kl":
        assert np.allclose(a[0], 0, atol=1e-6)
        assert (a[1] > 1).all()


def test_results_do_not_depend_on_the_batch_size():
    p = planted("both")
    options = {"draws": 5, **QUICK}
    some = planted_pairs()["test"][:7]
    big = evaluate(p.model, p.truth, some, p.metric, **options)
    small = evaluate(p.model, p.truth, some, p.metric, batch_size=5, **options)
    for group in ("/", "grid", "null"):
        a, b = (t[group].to_dataset()["circuit_metric"].values for t in (big, small))
        assert np.allclose(a, b, atol=1e-3)


def test_pairs_the_circuit_was_found_on_are_refused():
    p = planted("gate")
    with pytest.raises(PromptError, match="share"):
        evaluate(
            p.model,
            p.truth,
            planted_pairs()["test"],
            p.metric,
            discovery=planted_pairs()["test"][:3],
            **QUICK,
        )


def test_a_circuit_knows_the_pairs_it_was_found_on():
    p = planted("gate")
    train = planted_pairs()["train"]
    shape = (len(train), *p.graph.mask.shape)
    scores = xr.Dataset(
        {"edge_score": (("prompt", "src", "dst"), np.broadcast_to(p.truth.scores, shape))},
        coords=train.to_dataset().coords,
        attrs={**p.graph.to_attrs(), "metric": p.metric.kind},
    )
    circuit = discover(scores, edges=p.truth.n_kept)
    again = Circuit.from_dataset(circuit.to_dataset())
    for found in (circuit, again):
        with pytest.raises(PromptError, match="the circuit was found on share pair"):
            evaluate(p.model, found, train[:2], p.metric)
        with pytest.raises(PromptError, match="the circuit was found on share pair"):
            smallest(p.model, found, train, p.metric)
        with pytest.raises(PromptError, match="the circuit was found on share pair"):
            cross_faithfulness(p.model, {"a": found}, {"b": train}, p.metric)
    tree = evaluate(
        p.model, circuit, planted_pairs()["test"], p.metric, grid=False, nulls=(), **QUICK
    )
    assert float(tree["faithfulness"]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "at least 1"),
        ({"nulls": ["rand"]}, "unknown null"),
        ({"nulls": "random"}, "give a sequence"),
        ({"nulls": ["random", "random"]}, "named twice"),
        ({"confidence": 95}, "confidence"),
        ({"n_resamples": 0}, "n_resamples"),
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": -5, "ablation": "mean", "discovery": True}, "batch size"),
    ],
)
def test_options_are_checked_before_anything_is_run(options, message):
    p = planted("gate")
    recorder = MemoryRecorder()
    if "discovery" in options:
        options = {**options, "discovery": planted_pairs()["train"]}
    with pytest.raises(RequestError, match=message):
        evaluate(p.model, p.truth, planted_pairs()["test"], p.metric, recorder=recorder, **options)
    assert not recorder._stages


def test_pairs_that_the_model_does_not_tell_apart_are_refused_before_more_is_run():
    p = planted("gate")
    rows = [
        {
            "clean": f"How do I {verb} {a}?",
            "corrupted": f"How do I {verb} {b}?",
            "category": "x",
            "split": "test",
            "family": f"{verb} {a} {b}",
        }
        for verb in ("fix", "sell", "find")
        for objects in (HARMFUL, HARMLESS)
        for a, b in zip(objects[::2], objects[1::2], strict=True)
    ]
    recorder = MemoryRecorder()
    with pytest.raises(PromptError, match="undefined"):
        evaluate(p.model, p.truth, Pairs.from_rows(rows), p.metric, recorder=recorder, **QUICK)
    assert list(recorder._stages) == ["circuits"]


def test_what_does_not_fit_is_refused():
    p = planted("gate")
    other = planted("both").truth
    some = planted_pairs()["test"][:3]
    with pytest.raises(RequestError, match="3 layers"):
        evaluate(p.model, other, some, p.metric)
    with pytest.raises(RequestError, match="unknown ablation 'noise'"):
        evaluate(p.model, p.truth, some, p.metric, ablation="noise")
    with pytest.raises(RequestError, match="needs the discovery pairs"):
        evaluate(p.model, p.truth, some, p.metric, ablation="mean")
    with pytest.raises(RequestError, match="no scores"):
        evaluate(p.model, Circuit(p.graph, p.truth.kept), some, p.metric)
    with pytest.raises(RequestError, match="outside the vocabulary"):
        evaluate(p.model, p.truth, some, Metric.refusal_log_odds([10_000]))
    with pytest.raises((RequestError, InterventionError), match="batch size"):
        evaluate(p.model, p.truth, some, p.metric, batch_size=0)
    longer = Pairs.from_rows(
        [
            {
                "clean": "How do I fix fix fix fix fix guns?",
                "corrupted": "How do I fix fix fix fix fix soup?",
                "category": "x",
                "split": "test",
                "family": "long",
            }
        ]
    )
    with pytest.raises(PromptError, match="longest discovery prompt"):
        evaluate(
            p.model, p.truth, longer, p.metric, ablation="mean", discovery=planted_pairs()["train"]
        )


@pytest.mark.parametrize("name", PLANTED)
def test_the_smallest_faithful_circuit_of_a_ranking_that_knows_is_the_planted_one(name):
    p = planted(name)
    found = smallest(p.model, p.truth, planted_pairs()["test"], p.metric, target=0.95)
    assert found.low >= 0.95
    assert found.faithfulness >= found.low
    assert set(found.circuit.edges()) <= set(p.truth.edges())
    # one edge fewer misses the target: every size up to it was tried or lies below one that was
    tried = found.tried["faithfulness_low"].values[found.tried["edges_kept"] < found.circuit.n_kept]
    assert (tried < 0.95).all()
    assert found.circuit.attrs["target"] == 0.95


def test_a_ranking_that_knows_nothing_needs_many_edges():
    p = planted("gate")
    constant = Circuit(p.graph, p.truth.kept, np.where(p.graph.mask, 0.0, np.nan))
    found = smallest(p.model, constant, planted_pairs()["test"][:4], p.metric, target=0.9)
    assert found.circuit.n_kept > 20


def test_an_interval_asks_for_more_than_an_estimate_does():
    p = planted("gate")
    # two of the planted edges are hardly ranked above the others
    rng = np.random.default_rng(3)
    scores = np.where(p.graph.mask, rng.gamma(0.3, 0.2, p.graph.mask.shape), np.nan)
    scores = np.where(p.truth.kept, np.linspace(0.05, 1, scores.size).reshape(scores.shape), scores)
    circuit = Circuit(p.graph, p.truth.kept, -scores)
    test = planted_pairs()["test"]
    sure = smallest(p.model, circuit, test, p.metric, target=0.9)
    table = sure.tried
    assert (table["faithfulness_low"] <= table["faithfulness"] + 1e-9).all()
    enough = table["faithfulness_low"].values >= 0.9
    assert sure.circuit.n_kept == table["edges_kept"].values[enough].min()
    by_estimate = smallest(p.model, circuit, test, p.metric, target=0.9, confidence=None)
    assert by_estimate.circuit.n_kept <= sure.circuit.n_kept
    one = test[np.flatnonzero(test.family == test.family[0])]
    with pytest.raises(PromptError, match="one family only"):
        smallest(p.model, circuit, one, p.metric)
    with pytest.raises(RequestError, match="confidence"):
        smallest(p.model, circuit, test, p.metric, confidence=1.5)


def test_a_wrong_target_or_rule_is_refused():
    p = planted("gate")
    some = planted_pairs()["test"][:4]
    with pytest.raises(RequestError, match="target faithfulness"):
        smallest(p.model, p.truth, some, p.metric, target=1.5)
    with pytest.raises(RequestError, match="rule top or greedy"):
        smallest(p.model, p.truth, some, p.metric, rule="threshold")
    with pytest.raises(RequestError, match="no scores"):
        smallest(p.model, Circuit(p.graph, p.truth.kept), some, p.metric)


def test_a_circuit_works_on_its_own_task_and_not_on_anothers():
    p = planted("either")
    test = planted_pairs()["test"]
    branch = Circuit.from_edges(p.graph, [("input", "a1.h2<v>"), ("a1.h2", "m1"), ("m1", "logits")])
    found = cross_faithfulness(
        p.model,
        {"whole": p.truth, "branch": branch},
        {"a": test[:12], "b": test[12:]},
        p.metric,
        **QUICK,
    )
    assert found["faithfulness"].dims == ("circuit", "pairs")
    assert np.allclose(found["faithfulness"].sel(circuit="whole"), 1, atol=0.01)
    # one branch alone is most of it: the two overlap
    alone = found["faithfulness"].sel(circuit="branch").values
    assert ((alone > 0.5) & (alone < 0.95)).all()
    assert np.allclose(found["completeness"].sel(circuit="whole"), 0, atol=0.01)
