"""The statistics do what they say: simulated coverage and error rates, and independent oracles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from refusal_nn import stats
from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import FRACTIONS, random_circuits
from refusal_nn.circuits._compare import overlap_p, rank_overlap
from refusal_nn.circuits._faithfulness import check_difference, cmd, cpr, faithfulness
from refusal_nn.circuits._nulls import p_value, strata
from refusal_nn.circuits._stability import jaccard
from refusal_nn.errors import PromptError, RequestError

GRAPH = EdgeGraph(n_layers=3, n_heads=2, n_kv_heads=1)


def pairs(rng: np.random.Generator, n: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Skewed, heteroscedastic numerators and denominators, ``[pair, draw]``; ratio of means .8."""
    denominator = rng.gamma(4.0, 1.5, size=(n, draws))
    noise = rng.gamma(2.0, 1.0, size=(n, draws)) - 2.0
    return 0.8 * denominator + 0.6 * np.sqrt(denominator) * noise, denominator


@pytest.mark.parametrize(("n", "size"), [(100, 1), (120, 1), (120, 3)])
def test_intervals_of_a_ratio_of_means_cover_it_as_often_as_they_say(n, size):
    """1,500 seeded draws at nominal 95 %; with families of ``size`` pairs that go together."""
    draws = 1500
    rng = np.random.default_rng(17)
    numerator, denominator = pairs(rng, n, draws)
    cluster = None
    if size > 1:
        cluster = np.arange(n) // size
        shared, below = pairs(rng, n // size, draws)
        numerator = (numerator + np.repeat(shared, size, axis=0)) / 2
        denominator = (denominator + np.repeat(below, size, axis=0)) / 2
    # columns share their resamples, which leaves each one's own coverage as it is
    found = stats.ratio_of_means(numerator, denominator, cluster=cluster, n_resamples=999, seed=3)
    hits = int(((found.low <= 0.8) & (found.high >= 0.8)).sum())
    assert 0.93 <= hits / draws <= 0.97, hits / draws


def null_effects(rng: np.random.Generator, kept: np.ndarray) -> np.ndarray:
    """Faithfulness of circuits ``[..., src, dst]`` where edges matter alike but at random."""
    weights = rng.gamma(1.0, 1.0, size=kept.shape[-2:])
    return (kept * weights).sum((-2, -1)) / weights.sum()


@pytest.mark.parametrize("kind", ["random", "layer-matched"])
def test_the_test_against_random_circuits_rejects_as_often_as_it_says_under_the_null(kind):
    """1,000 seeded draws of a circuit that is itself one of the random ones, at level .05."""
    rejected, simulations = 0, 1000
    rng = np.random.default_rng(5)
    template = GRAPH.mask & (rng.random(GRAPH.mask.shape) < 0.3)
    for seed in range(simulations):
        drawn = random_circuits(GRAPH, template, 100, kind=kind, seed=seed)
        values = null_effects(np.random.default_rng(10_000 + seed), drawn)
        rejected += p_value(values[0], values[1:]) <= 0.05
    assert 0.02 <= rejected / simulations <= 0.07, rejected / simulations


def test_the_test_against_random_circuits_finds_a_circuit_of_the_edges_that_matter():
    rng = np.random.default_rng(0)
    weights = np.where(GRAPH.mask, rng.gamma(1.0, 1.0, size=GRAPH.mask.shape), 0)
    best = weights > np.quantile(weights[GRAPH.mask], 0.8)
    for kind in ("random", "layer-matched"):
        drawn = random_circuits(GRAPH, best, 99, kind=kind)
        null = (drawn * weights).sum((1, 2))
        assert p_value((best * weights).sum(), null) == 0.01


@pytest.mark.parametrize("kind", ["random", "layer-matched"])
def test_random_circuits_have_the_circuits_size_and_places(kind):
    rng = np.random.default_rng(1)
    kept = GRAPH.mask & (rng.random(GRAPH.mask.shape) < 0.2)
    drawn = random_circuits(GRAPH, kept, 400, kind=kind, seed=2)
    assert not (drawn & ~GRAPH.mask).any()
    level = strata(GRAPH, kind)
    for stratum in np.unique(level[GRAPH.mask]):
        here = GRAPH.mask & (level == stratum)
        assert (drawn[:, here].sum(1) == (kept & here).sum()).all()
        # every edge of a stratum is drawn equally often
        k, total = int((kept & here).sum()), int(here.sum())
        share = drawn[:, here].mean(0)
        assert (np.abs(share - k / total) < 5 * 0.5 / 20).all()
    again = random_circuits(GRAPH, kept, 400, kind=kind, seed=2)
    other = random_circuits(GRAPH, kept, 400, kind=kind, seed=3)
    assert (again == drawn).all()
    assert (other != drawn).any()


def test_layers_are_matched_by_the_names_of_writers_and_readers():
    level = strata(GRAPH, "layer-matched")

    def place(name: str) -> tuple[str, str]:
        if name in ("input", "logits"):
            return name, ""
        return name[0], name[1]  # kind and layer

    groups: dict[int, set] = {}
    for s, d in np.argwhere(GRAPH.mask):
        groups.setdefault(int(level[s, d]), set()).add((place(GRAPH.src[s]), place(GRAPH.dst[d])))
    assert all(len(places) == 1 for places in groups.values())
    everything = [next(iter(places)) for places in groups.values()]
    assert len(set(everything)) == len(everything)


def test_p_values_count_ties_against_the_circuit_and_are_never_zero():
    assert p_value(1.0, [0.0, 1.0, 2.0]) == 0.75
    assert p_value(3.0, np.zeros(99)) == 0.01


def curve(rng: np.random.Generator, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nothing = rng.normal(-5, 1, n)
    model = nothing + rng.gamma(6, 1, n)
    share = np.linspace(0.1, 1.2, len(FRACTIONS))
    metric = nothing[:, None] + share * (model - nothing)[:, None] + rng.normal(0, 0.3, (n, 10))
    return metric, model, nothing


def test_the_areas_are_trapezoids_of_ratios_of_means():
    metric, model, nothing = curve(np.random.default_rng(2))
    ratios = (metric - nothing[:, None]).mean(0) / (model - nothing).mean()
    found = faithfulness(metric, model, nothing)
    assert np.allclose(found.value, ratios)
    above = cpr(metric, model, nothing, FRACTIONS)
    between = cmd(metric, model, nothing, FRACTIONS)
    assert np.isclose(above.value, np.trapezoid(ratios, FRACTIONS))
    assert np.isclose(between.value, np.trapezoid(np.abs(1 - ratios), FRACTIONS))
    for area in (above, between):
        assert area.low < area.value < area.high


def test_a_perfect_circuit_of_every_size_scores_what_mib_says():
    _, model, nothing = curve(np.random.default_rng(3))
    metric = np.repeat(model[:, None], len(FRACTIONS), axis=1)
    assert np.isclose(cpr(metric, model, nothing, FRACTIONS).value, 0.999)
    assert np.isclose(cmd(metric, model, nothing, FRACTIONS).value, 0.0)


def test_intervals_of_the_areas_agree_with_a_bootstrap_written_out():
    metric, model, nothing = curve(np.random.default_rng(4), n=100)
    rng = np.random.default_rng(0)
    drawn = {"cpr": [], "cmd": []}
    for _ in range(4000):
        rows = rng.integers(100, size=100)
        ratios = (metric - nothing[:, None])[rows].mean(0) / (model - nothing)[rows].mean()
        drawn["cpr"].append(np.trapezoid(ratios, FRACTIONS))
        drawn["cmd"].append(np.trapezoid(np.abs(1 - ratios), FRACTIONS))
    for area, name in ((cpr, "cpr"), (cmd, "cmd")):
        found = area(metric, model, nothing, FRACTIONS)
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        width = high - low
        assert abs(found.low - low) < 0.15 * width
        assert abs(found.high - high) < 0.15 * width


def test_a_denominator_that_may_be_zero_is_refused():
    rng = np.random.default_rng(0)
    nothing = rng.normal(0, 1, 50)
    with pytest.raises(PromptError, match="faithfulness, a share of that difference, is undefined"):
        faithfulness(nothing, nothing + rng.normal(0, 1, 50), nothing)
    check_difference(nothing + 1, nothing)
    # one family has no interval: then the difference itself must do
    check_difference(nothing + 1, nothing, cluster=["one"] * 50)
    with pytest.raises(PromptError, match="undefined"):
        check_difference(nothing, nothing, cluster=["one"] * 50)


def test_a_function_of_means_needs_columns():
    with pytest.raises(RequestError, match="observation, column"):
        stats.function_of_means([1.0, 2.0], lambda m: m[..., 0])


def test_overlap_of_random_circuits_is_as_likely_as_drawing_them_says():
    rng = np.random.default_rng(6)
    first = GRAPH.mask & (rng.random(GRAPH.mask.shape) < 0.3)
    second = GRAPH.mask & (rng.random(GRAPH.mask.shape) < 0.4)
    shared = int((first & second).sum())
    exact = scipy_stats.hypergeom(GRAPH.n_edges, int(first.sum()), int(second.sum())).sf(shared - 1)
    assert np.isclose(overlap_p(GRAPH, first, second), exact)
    for kind in ("random", "layer-matched"):
        drawn = random_circuits(GRAPH, second, 20_000, kind=kind)
        simulated = ((drawn & first).sum((1, 2)) >= shared).mean()
        assert abs(overlap_p(GRAPH, first, second, kind=kind) - simulated) < 0.015


def test_rank_overlap_is_the_sum_over_depths_written_out():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=30), rng.normal(size=30)
    x, y = np.argsort(-a), np.argsort(-b)
    p = 1 - 1 / 5
    agreement = [len(set(x[:d]) & set(y[:d])) / d for d in range(1, 31)]
    expected = (1 - p) * sum(p ** (d - 1) * agreement[d - 1] for d in range(1, 31))
    assert np.isclose(rank_overlap(a, b, depth=5), expected + p**30 * agreement[-1])
    assert rank_overlap(a, a, depth=5) == pytest.approx(1.0)
    assert rank_overlap(a, -a, depth=5) < 0.3


def test_jaccard_is_intersection_over_union_of_every_two():
    drawn = np.random.default_rng(8).random((6, 4, 5)) < 0.5
    drawn[5] = False
    expected = [
        (drawn[i] & drawn[j]).sum() / (drawn[i] | drawn[j]).sum()
        for i in range(6)
        for j in range(i + 1, 6)
    ]
    assert np.allclose(jaccard(drawn), expected)
    assert jaccard(np.zeros((2, 3, 3), dtype=bool)).tolist() == [1.0]
