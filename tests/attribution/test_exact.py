"""Exact scores against patching in the split graph one edge at a time."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import transformers

from refusal_nn.attribution import EdgeGraph, Metric
from refusal_nn.testing import (
    D_MODEL,
    SplitGraph,
    exact_scores,
    plain_module,
    random_pairs,
    tiny_model,
    tiny_module,
    wrap,
)
from tests.attribution._made import DIFFERENCE, LOG_ODDS, attribute, log_odds

WORDS = {"gemma2": (4,)}


def rows_of(model, pairs, k):
    return tuple(model.chat.tokens(side.texts)[k] for side in (pairs.clean, pairs.corrupted))


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "olmo2", "phi"])
def test_exact_edge_scores_equal_patching_one_edge_at_a_time(family):
    model = tiny_model(family, torch.float64)
    split = SplitGraph(plain_module(family, torch.float64), family)
    pairs = random_pairs(2, WORDS.get(family, (4, 6)))
    found = attribute(model, pairs, LOG_ODDS, method="exact", batch_size=64)["edge_score"].values
    graph = split.graph
    assert (np.isnan(found) == ~graph.mask).all()
    # into every reader the first, a middle or the last edge there is
    seen = [(d, int(graph.prefix[k]) - 1) for k, d in enumerate(graph.dst)]
    chosen = [(graph.src[(0, n // 2, n)[k % 3]], d) for k, (d, n) in enumerate(seen)]
    expected = exact_scores(split, *rows_of(model, pairs, 0), log_odds, [[e] for e in chosen])
    scores = [found[0][graph.index(*edge)] for edge in chosen]
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "phi"])
def test_an_exact_node_score_patches_all_edges_that_leave_the_node(family):
    model = tiny_model(family, torch.float64)
    split = SplitGraph(plain_module(family, torch.float64), family)
    pairs = random_pairs(2, WORDS.get(family, (4, 6)))
    found = attribute(model, pairs, LOG_ODDS, method="exact", level="node")
    graph = split.graph
    leaving = [[e for e in graph.edges() if e[0] == src] for src in graph.src]
    expected = exact_scores(split, *rows_of(model, pairs, 1), log_odds, leaving)
    scores = found["node_score"].values[1]
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())
    # every edge that leaves the input corrupted is the corrupted prompt
    change = found["corrupted_metric"] - found["clean_metric"]
    np.testing.assert_allclose(found["node_score"].sel(src="input"), change, rtol=1e-6)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_exact_scores_do_not_depend_on_batch_size_or_on_the_other_pairs(level):
    model = tiny_model("llama", torch.float64)
    pairs = random_pairs(3, (4, 7))
    name = f"{level}_score"
    whole = attribute(model, pairs, LOG_ODDS, method="exact", level=level, batch_size=256)
    part = attribute(model, pairs, LOG_ODDS, method="exact", level=level, batch_size=16)
    np.testing.assert_allclose(part[name], whole[name], rtol=1e-6, atol=1e-9)
    alone = attribute(model, pairs[2:], LOG_ODDS, method="exact", level=level)
    np.testing.assert_allclose(alone[name].values[0], whole[name].values[2], rtol=1e-6, atol=1e-9)


@cache
def linear_model():
    """A GPT-2 whose logits are linear in every edge.

    Its MLPs have no activation function, its queries and keys are zero so that attention is uniform,
    and its norms divide by an epsilon so large that the variance does not matter.
    """
    config = transformers.GPT2Config(
        vocab_size=97,
        n_embd=D_MODEL,
        n_layer=3,
        n_head=4,
        n_positions=64,
        activation_function="linear",
        layer_norm_epsilon=1e14,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                if ".ln_" in name and name.endswith("weight"):
                    parameter.mul_(1e7)
            for block in module.transformer.h:
                block.attn.c_attn.weight[:, : 2 * D_MODEL] = 0
    return wrap(module, name="linear")


@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted"])
def test_every_method_is_exact_on_a_model_that_is_linear_in_its_edges(method):
    model = linear_model()
    pairs = random_pairs(2, (4, 6))
    exact = attribute(model, pairs, DIFFERENCE, method="exact")["edge_score"].values
    found = attribute(model, pairs, DIFFERENCE, method=method)["edge_score"].values
    there = EdgeGraph.of(model.arch).mask
    assert np.corrcoef(exact[:, there].ravel(), found[:, there].ravel())[0, 1] > 1 - 1e-6
    np.testing.assert_allclose(found, exact, atol=1e-6 * np.nanmax(np.abs(exact)))
    # edges into queries and keys carry nothing here, the others do
    assert (np.abs(exact[:, there]) > 1e-9).mean() > 0.25


def test_integrated_gradients_agree_with_exact_patching_on_random_models():
    found = []
    for seed in range(5):
        model = wrap(tiny_module("llama", seed=seed))
        pairs = random_pairs(4, (6,), seed=seed)
        there = EdgeGraph.of(model.arch).mask
        exact, integrated = (
            attribute(model, pairs, LOG_ODDS, method=m, steps=5)["edge_score_mean"].values[there]
            for m in ("exact", "eap-ig")
        )
        found.append(float(np.corrcoef(exact, integrated)[0, 1]))
    assert np.median(found) >= 0.90


def test_writers_behind_what_a_projection_reads_have_no_effect():
    model = tiny_model("llama", torch.float64)
    pairs = random_pairs(2)
    metric = Metric.projection(np.arange(1.0, D_MODEL + 1), layer=1)
    exact, first_order = (
        attribute(model, pairs, metric, method=m) for m in ("exact", "clean-corrupted")
    )
    graph = EdgeGraph.of(model.arch)
    behind = slice(1 + graph.writers_per_layer, None)
    for found in (exact, first_order):
        scores = found["edge_score"].values
        assert (np.nan_to_num(scores[:, behind]) == 0).all()
        assert (np.nan_to_num(scores[..., graph.readers_per_layer : -1]) == 0).all()
        # the last token is the same word in both prompts, so the input itself writes no difference
        assert (scores[:, 1 : behind.start, -1] != 0).all()
    # the reading is linear in what is written to it
    np.testing.assert_allclose(
        exact["edge_score"].sel(dst="logits"),
        first_order["edge_score"].sel(dst="logits"),
        atol=1e-6,
    )
    nodes = attribute(model, pairs, metric, method="exact", level="node")["node_score"]
    assert (nodes.values[:, behind] == 0).all()
    change = exact["corrupted_metric"] - exact["clean_metric"]
    np.testing.assert_allclose(nodes.sel(src="input"), change, rtol=1e-6)
