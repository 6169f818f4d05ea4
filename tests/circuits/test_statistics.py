"""The statistics do what they say: simulated coverage and error rates, and independent oracles."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats as scipy_stats

from refusal_nn import stats
from refusal_nn.attribution import EdgeGraph, Metric
from refusal_nn.circuits import FRACTIONS, Circuit, discover, random_circuits
from refusal_nn.circuits._compare import overlap_p, rank_overlap
from refusal_nn.circuits._discover import prune
from refusal_nn.circuits._faithfulness import Scale
from refusal_nn.circuits._measure import Bench
from refusal_nn.circuits._nulls import check_nulls, p_value, strata
from refusal_nn.circuits._stability import jaccard
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.prompts import Pairs
from refusal_nn.testing import tiny_model

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


def from_noise(graph: EdgeGraph, seed: int, share: float, rule: str = "top") -> Circuit | None:
    """A circuit discovered in scores that say nothing; None where nothing is left of it."""
    noise = np.random.default_rng(seed).normal(size=graph.mask.shape)
    values = np.where(graph.mask, noise, np.nan)
    scores = xr.Dataset(
        {"edge_score": (("src", "dst"), values)},
        coords={"src": graph.src, "dst": graph.dst},
        attrs={**graph.to_attrs(), "metric": "logit-difference"},
    )
    try:
        return discover(scores, fraction=share, rule=rule)
    except RequestError:
        return None


def effect(kept: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What circuits ``[circuit, src, dst]`` do where live edges matter, alike and at random."""
    alive = np.stack([prune(GRAPH, one) for one in kept])
    return (alive * weights).sum((-2, -1))


@pytest.mark.parametrize("made", [True, False], ids=["made again", "scores unknown"])
@pytest.mark.parametrize("kind", ["random", "layer-matched"])
def test_the_test_against_random_circuits_rejects_as_often_as_it_says_under_the_null(kind, made):
    """Circuits discovered in noise and pruned, at level .05; dead edges do nothing."""
    below = above = n = 0
    for seed in range(150):
        circuit = from_noise(GRAPH, seed, 0.3)
        if circuit is None:
            continue
        n += 1
        bare = circuit if made else Circuit(GRAPH, circuit.kept)
        drawn = random_circuits(bare, 19, kind=kind, seed=seed)
        weights = np.random.default_rng(10_000 + seed).gamma(1.0, 1.0, size=GRAPH.mask.shape)
        values = effect(np.concatenate([circuit.kept[None], drawn]), weights)
        above += p_value(values[0], values[1:]) <= 0.05
        below += p_value(-values[0], -values[1:]) <= 0.05
    # four standard errors about .05 at n = 150
    assert n > 140
    assert max(above, below) / n <= 0.12, (above, below, n)


@pytest.mark.long(n=1000)
@pytest.mark.parametrize("rule", ["top", "greedy"])
@pytest.mark.parametrize("kind", ["random", "layer-matched"])
def test_on_a_model_it_rejects_circuits_found_in_noise_as_often_as_it_says(kind, rule):
    """1,000 seeded circuits of a random Llama, discovered in noise, each against 19 draws."""
    model = tiny_model("llama")
    graph = EdgeGraph.of(model.arch)
    rows = [
        {
            "clean": f"w{10 + i} w{20 + i} w{30 + i}",
            "corrupted": f"w{10 + i} w{50 + i} w{30 + i}",
            "category": "none",
            "split": "test",
            "family": str(i),
        }
        for i in range(4)
    ]
    metric = Metric.logit_difference([7], [8])
    bench = Bench(model, Pairs.from_rows(rows), metric, batch_size=256)
    circuits = [c for seed in range(1010) if (c := from_noise(graph, seed, 0.3, rule))][:1000]
    assert len(circuits) == 1000
    kept = [
        one
        for seed, circuit in enumerate(circuits)
        for one in (circuit.kept, *random_circuits(circuit, 19, kind=kind, seed=seed))
    ]
    values = bench.measure("null", kept, [str(i) for i in range(len(kept))]).mean(1)
    rejected = [p_value(row[0], row[1:]) <= 0.05 for row in values.reshape(1000, 20)]
    assert 0.02 <= np.mean(rejected) <= 0.07, np.mean(rejected)


def test_the_test_against_random_circuits_finds_a_circuit_of_the_edges_that_matter():
    rng = np.random.default_rng(0)
    weights = np.where(GRAPH.mask, rng.gamma(1.0, 1.0, size=GRAPH.mask.shape), 0)
    best = prune(GRAPH, weights > np.quantile(weights[GRAPH.mask], 0.7))
    for kind in ("random", "layer-matched"):
        drawn = random_circuits(Circuit(GRAPH, best), 99, kind=kind)
        assert p_value(effect(best[None], weights)[0], effect(drawn, weights)) == 0.01


@pytest.mark.parametrize("rule", ["top", "greedy", None])
@pytest.mark.parametrize("kind", ["random", "layer-matched"])
def test_random_circuits_have_the_circuits_size_and_no_dead_ends(kind, rule):
    circuit = from_noise(GRAPH, 3, 0.35, rule or "top")
    if rule is None:
        circuit = Circuit(GRAPH, circuit.kept)
    drawn = random_circuits(circuit, 60, kind=kind, seed=2)
    assert not (drawn & ~GRAPH.mask).any()
    assert all((prune(GRAPH, one) == one).all() for one in drawn)
    sizes = drawn.sum((1, 2))
    assert (sizes == circuit.n_kept).mean() > 0.8
    assert np.abs(sizes - circuit.n_kept).max() <= 3
    again = random_circuits(circuit, 60, kind=kind, seed=2)
    other = random_circuits(circuit, 60, kind=kind, seed=3)
    assert (again == drawn).all()
    assert (other != drawn).any()


def test_scores_of_a_place_stay_there_when_they_are_dealt_out():
    """One place holds all the large scores: layer-matched circuits are made of it, random ones not."""
    level = strata(GRAPH, "layer-matched")
    here = level == level[GRAPH.index("input", "m1")]
    here |= level == level[GRAPH.index("m1", "logits")]
    noise = np.random.default_rng(0).normal(size=GRAPH.mask.shape)
    scores = np.where(GRAPH.mask, np.where(here, 10, 0) + 0.1 * noise, np.nan)
    attrs = {"rule": "top", "ranking": "absolute", "metric": "projection"}
    circuit = Circuit(GRAPH, prune(GRAPH, GRAPH.mask & here), scores, attrs)
    matched = random_circuits(circuit, 20, kind="layer-matched")
    assert (matched == circuit.kept).all()
    assert (random_circuits(circuit, 20, kind="random") != circuit.kept).any((1, 2)).sum() > 10


def test_dead_ends_of_the_circuit_itself_are_not_matched():
    edges = [("input", "m0"), ("m0", "logits")]
    alive = Circuit.from_edges(GRAPH, edges)
    with_dead = Circuit.from_edges(GRAPH, [*edges, ("input", "m1"), ("a0.h0", "m2")])
    for circuit in (alive, with_dead):
        assert (random_circuits(circuit, 20).sum((1, 2)) <= 2).all()
    assert not random_circuits(Circuit.from_edges(GRAPH, edges[:1]), 3).any()


@pytest.mark.parametrize(
    ("nulls", "draws", "message"),
    [
        (["rand"], 9, "unknown null 'rand'"),
        ("random", 9, "give a sequence"),
        (["random", "random"], 9, "named twice"),
        (["random"], 0, "at least 1"),
    ],
)
def test_nulls_that_cannot_be_drawn_are_refused(nulls, draws, message):
    with pytest.raises(RequestError, match=message):
        check_nulls(nulls, draws)


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
    scale = Scale(model, nothing)
    assert np.allclose(scale.faithfulness(metric.T).value, ratios)
    above, between = scale.cpr(metric.T), scale.cmd(metric.T)
    assert np.isclose(above.value, np.trapezoid(ratios, FRACTIONS))
    assert np.isclose(between.value, np.trapezoid(np.abs(1 - ratios), FRACTIONS))
    for area in (above, between):
        assert area.low < area.value < area.high


def test_a_perfect_circuit_of_every_size_scores_what_mib_says():
    _, model, nothing = curve(np.random.default_rng(3))
    metric = np.repeat(model[None], len(FRACTIONS), axis=0)
    assert np.isclose(Scale(model, nothing).cpr(metric).value, 0.999)
    assert np.isclose(Scale(model, nothing).cmd(metric).value, 0.0)


def test_intervals_of_the_areas_agree_with_a_bootstrap_written_out():
    metric, model, nothing = curve(np.random.default_rng(4), n=100)
    rng = np.random.default_rng(0)
    drawn = {"cpr": [], "cmd": []}
    for _ in range(4000):
        rows = rng.integers(100, size=100)
        ratios = (metric - nothing[:, None])[rows].mean(0) / (model - nothing)[rows].mean()
        drawn["cpr"].append(np.trapezoid(ratios, FRACTIONS))
        drawn["cmd"].append(np.trapezoid(np.abs(1 - ratios), FRACTIONS))
    scale = Scale(model, nothing)
    for area, name in ((scale.cpr, "cpr"), (scale.cmd, "cmd")):
        found = area(metric.T)
        low, high = np.quantile(drawn[name], [0.025, 0.975])
        width = high - low
        assert abs(found.low - low) < 0.15 * width
        assert abs(found.high - high) < 0.15 * width


def test_a_denominator_that_may_be_zero_is_refused():
    rng = np.random.default_rng(0)
    nothing = rng.normal(0, 1, 50)
    with pytest.raises(PromptError, match="faithfulness, a share of that difference, is undefined"):
        Scale(nothing + rng.normal(0, 1, 50), nothing)
    Scale(nothing + 1, nothing)
    Scale(nothing - 1, nothing)
    with pytest.raises(PromptError, match="lower by 1 in the model"):
        Scale(nothing - 1, nothing, positive=True)
    # one family has no interval: then the difference itself must do
    Scale(nothing + 1, nothing, cluster=["one"] * 50)
    with pytest.raises(PromptError, match="undefined"):
        Scale(nothing, nothing, cluster=["one"] * 50)


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
        level = strata(GRAPH, kind)
        drawn = np.zeros((20_000, *GRAPH.mask.shape), dtype=bool)
        for stratum in np.unique(level[GRAPH.mask]):
            here = GRAPH.mask & (level == stratum)
            ranks = np.argsort(rng.random((20_000, int(here.sum()))), axis=1)
            drawn[:, here] = ranks < int((second & here).sum())
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
    # two empty circuits have nothing to share
    assert np.isnan(jaccard(np.zeros((2, 3, 3), dtype=bool))).tolist() == [True]
