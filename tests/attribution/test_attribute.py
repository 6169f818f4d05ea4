"""Edge and node scores against a split graph built in plain PyTorch, and what they must not depend on."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from refusal_nn.attribution import Metric
from refusal_nn.attribution._summary import summary
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.prompts import Pairs
from refusal_nn.shipped import edges as _edges
from refusal_nn.testing import (
    FAMILIES,
    SplitGraph,
    edge_scores,
    plain_module,
    random_pairs,
    tiny_model,
)
from tests.attribution._made import DIFFERENCE, LOG_ODDS, attribute, log_odds

# the families that differ in what is computed; the others are checked through their node scores
CORE = ("llama", "gpt2", "neox", "gemma2")
SPLIT = (*CORE, "qwen3", "qwen3_moe", "phi3", "phi", "neox_sequential", "olmo2")
# mixed lengths, so that rows are padded; Gemma 2's eager attention gives NaN in float64 at padding
WORDS = {"gemma2": (4,)}
FIRST_ORDER = {
    "eap": [0.0],
    "eap-ig": [2 / 3, 1 / 3, 0.0],
    "clean-corrupted": [0.0, 1.0],
}
CASES = [(f, m) for f in SPLIT for m in FIRST_ORDER if f in CORE or m == "eap-ig"]


@cache
def split_graph(family: str) -> SplitGraph:
    return SplitGraph(plain_module(family, torch.float64), family)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", SPLIT)
def test_the_split_graph_is_the_model(family):
    row = [1, 5, 20, 30, 40, 6]
    plain = plain_module(family, torch.float64)(torch.tensor([row])).logits[0, -1]
    torch.testing.assert_close(split_graph(family).run(row).logits, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("family", "method"), CASES)
def test_edge_scores_equal_those_of_the_split_graph(family, method):
    model = tiny_model(family, torch.float64)
    split = split_graph(family)
    pairs = random_pairs(2, WORDS.get(family, (4, 6)))
    found = attribute(model, pairs, LOG_ODDS, method=method, steps=3)
    assert found["edge_score"].dims == ("prompt", "src", "dst")
    assert (found["src"].values == split.graph.src).all()
    assert (found["dst"].values == split.graph.dst).all()
    clean, corrupted = (model.chat.tokens(side.texts) for side in (pairs.clean, pairs.corrupted))
    k = 1 if family in CORE else 0
    expected = edge_scores(split, clean[k], corrupted[k], log_odds, FIRST_ORDER[method]).numpy()
    scores = found["edge_score"].values[k]
    assert (np.isnan(scores) == ~split.graph.mask).all()
    assert relative(np.nan_to_num(scores), expected) < 1e-5
    # gradients exist at nearly every edge, so the comparison is not of zeros
    assert (np.abs(expected[split.graph.mask]) > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("family", "edge", "node"),
    [
        *((family, "eap-ig", "eap-ig") for family in FAMILIES),
        *((family, "eap", "atp") for family in CORE),
        *((family, "clean-corrupted", "clean-corrupted") for family in CORE),
    ],
)
def test_a_node_score_is_the_sum_of_the_edges_that_leave_it(family, edge, node):
    model = tiny_model(family, torch.float64)
    pairs = random_pairs(2, WORDS.get(family, (4, 6)))
    edges = attribute(model, pairs, LOG_ODDS, method=edge, steps=2)
    nodes = attribute(model, pairs, LOG_ODDS, method=node, level="node", steps=2)
    total = edges["edge_score"].sum("dst").values
    assert relative(total, nodes["node_score"].values) < 1e-6
    assert np.abs(nodes["node_score"]).min() > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
def test_integrated_gradients_become_complete_as_steps_grow(family):
    model = tiny_model(family, torch.float64)
    pairs = random_pairs(2)
    gaps = []
    for steps in (6, 24, 96):
        found = attribute(model, pairs, DIFFERENCE, method="eap-ig", steps=steps, batch_size=96)
        total = found["edge_score"].sel(src="input").sum("dst").values
        change = (found["corrupted_metric"] - found["clean_metric"]).values
        gaps.append(np.abs(total - change).max() / np.abs(change).max())
    # one end of every interval is used, so the error falls as 1 / steps
    assert gaps[1] < gaps[0] / 2
    assert gaps[2] < gaps[1] / 2
    assert gaps[2] < 0.03


@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_scores_do_not_depend_on_batch_size_or_on_the_other_pairs(family, level):
    model = tiny_model(family, torch.float64)
    pairs = random_pairs(4, (4, 7, 5))
    name = f"{level}_score"
    whole = attribute(model, pairs, LOG_ODDS, level=level, steps=3)
    for size in (1, 6):
        part = attribute(model, pairs, LOG_ODDS, level=level, steps=3, batch_size=size)
        np.testing.assert_allclose(part[name], whole[name], rtol=1e-9, atol=1e-9)
    alone = attribute(model, pairs[2:3], LOG_ODDS, level=level, steps=3)
    np.testing.assert_allclose(alone[name].values[0], whole[name].values[2], rtol=1e-9, atol=1e-9)


def test_scores_do_not_depend_on_how_many_positions_are_held_at_a_time(monkeypatch):
    model = tiny_model("gpt2", torch.float64)
    pairs = random_pairs(2, (4, 7))
    whole = attribute(model, pairs, LOG_ODDS, steps=2)
    monkeypatch.setattr(_edges, "BLOCK_OF_POSITIONS", 1)
    part = attribute(model, pairs, LOG_ODDS, steps=2)
    np.testing.assert_allclose(part["edge_score"], whole["edge_score"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_a_job_run_without_the_package_gives_the_same_scores(level):
    pairs = random_pairs(2, (4, 6))
    methods = ["eap-ig", "exact"] if level == "node" else ["eap-ig"]
    for method in methods:
        here, there = (
            attribute(tiny_model("llama", backend=b), pairs, LOG_ODDS, method=method, level=level)
            for b in ("local", "dry-run")
        )
        xr.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-7)


def test_half_precision_scores_are_those_of_single_precision_within_its_rounding():
    pairs = random_pairs(4)
    single, half = (
        attribute(tiny_model("llama", dtype), pairs, LOG_ODDS)["edge_score"].values
        for dtype in (torch.float32, torch.bfloat16)
    )
    there = ~np.isnan(single)
    assert half.dtype == np.float32
    assert np.corrcoef(single[there], half[there])[0, 1] > 0.98


def test_mean_and_standard_error_are_over_pairs():
    found = attribute(tiny_model("llama"), random_pairs(5), LOG_ODDS, method="eap")
    scores = found["edge_score"].values.astype(np.float64)
    mean = found["edge_score_mean"].values
    np.testing.assert_allclose(mean, scores.mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        found["edge_score_se"].values, scores.std(0, ddof=1) / 5**0.5, rtol=1e-6
    )
    one = attribute(tiny_model("llama"), random_pairs(1), LOG_ODDS, method="eap")
    assert np.isnan(one["edge_score_se"]).all()
    assert found.attrs["metric"] == "refusal-log-odds"
    assert (found.attrs["method"], found.attrs["ablation"]) == ("eap", "resample")


def test_the_standard_error_is_of_families():
    """Each pair twice in its family: as sure as with each pair once; apart, surer by sqrt 2."""
    values = np.random.default_rng(0).normal(size=(6, 3, 2))
    family = np.array(list("abcdef"), dtype=object)

    def error(scores: np.ndarray, family: np.ndarray) -> np.ndarray:
        table = xr.Dataset({"edge_score": (("prompt", "src", "dst"), scores)})
        return summary(table, "edge", family)["edge_score_se"].values

    once = values.std(0, ddof=1) / 6**0.5
    np.testing.assert_allclose(error(values, family), once)
    np.testing.assert_allclose(error(values.repeat(2, axis=0), family.repeat(2)), once)
    # families of unequal size, by the formula of a ratio estimator written out
    uneven = np.array(list("aaabbc"), dtype=object)
    sums = [(values[uneven == f] - values.mean(0)).sum(0) for f in "abc"]
    np.testing.assert_allclose(error(values, uneven), (sum(s**2 for s in sums) * 3 / 2) ** 0.5 / 6)
    assert np.isnan(error(values, np.array(["a"] * 6, dtype=object))).all()


def test_a_table_of_scores_counts_families():
    rows = [{**row, "family": f"f{k // 2}"} for k, row in enumerate(random_pairs(4).to_rows())]
    found = attribute(tiny_model("llama"), Pairs.from_rows(rows), LOG_ODDS, method="eap")
    halves = found["edge_score"].values.astype(float).reshape(2, 2, *found["edge_score"].shape[1:])
    expected = halves.mean(1).std(0, ddof=1) / 2**0.5
    np.testing.assert_allclose(found["edge_score_se"], expected, rtol=1e-4, atol=1e-9)


def test_metrics_of_both_runs_are_those_of_the_plain_model():
    model = tiny_model("llama", torch.float64)
    pairs = random_pairs(3, (4, 6))
    found = attribute(model, pairs, LOG_ODDS, method="clean-corrupted")
    plain = plain_module("llama", torch.float64)
    for side in ("clean", "corrupted"):
        rows = model.chat.tokens(getattr(pairs, side).texts)
        with torch.no_grad():
            expected = [float(log_odds(plain(torch.tensor([r])).logits[0, -1])) for r in rows]
        np.testing.assert_allclose(found[f"{side}_metric"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "acdc"}, "unknown method 'acdc'"),
        ({"level": "neuron"}, "unknown level 'neuron'"),
        ({"method": "atp"}, "atp is not for level edge; .* called eap"),
        ({"method": "eap", "level": "node"}, "eap is not for level node; .* called atp"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": 2.5}, "a whole number, got 2.5"),
        ({"metric": "refusal-log-odds"}, "is a str, not a Metric"),
        ({"batch_size": 0}, "at least 1"),
        ({"metric": Metric.kl(), "method": "eap"}, "gradient zero"),
        ({"metric": Metric.refusal_log_odds([97])}, "token 97 is outside the vocabulary"),
        ({"metric": Metric.projection(np.ones(5))}, "has 5 numbers"),
        ({"metric": Metric.projection(np.ones(32), 3)}, "from 1 to 2"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        attribute(tiny_model("llama"), random_pairs(1), **{"metric": LOG_ODDS, **options})


def test_pairs_of_unequal_length_are_refused():
    rows = {"category": "x", "split": "test", "family": "f"}
    pairs = Pairs.from_rows([{"clean": "w20 w21 w22", "corrupted": "w23 w24", **rows}])
    with pytest.raises(PromptError, match="tokens"):
        attribute(tiny_model("llama"), pairs, LOG_ODDS)
