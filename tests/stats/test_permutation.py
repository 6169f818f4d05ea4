"""Sign flips: exact where they can be counted, and of the right size under the null."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from refusal_nn.errors import RequestError
from refusal_nn.stats import adjust, sign_flip


def exact(values: np.ndarray, two_sided: bool) -> float:
    """P of all sign patterns, each counted once."""
    totals = np.array([np.dot(s, values) for s in product((-1, 1), repeat=len(values))])
    observed = values.sum()
    if two_sided:
        totals, observed = np.abs(totals), abs(observed)
    return float((totals >= observed - 1e-12).mean())


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
@pytest.mark.parametrize("seed", range(3))
def test_p_is_that_of_all_flips(alternative, seed):
    values = np.random.default_rng(seed).normal(0.3, 1.0, size=10)
    found = sign_flip(values, alternative=alternative, n_permutations=40_000)
    assert found.p == pytest.approx(exact(values, alternative == "two-sided"), abs=0.01)


def test_families_flip_as_one():
    values = np.array([1.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.3, 0.7])
    alone = sign_flip(values, n_permutations=20_000).p
    paired = sign_flip(values, cluster=[0, 0, 1, 1, 2, 2, 3, 3], n_permutations=20_000)
    assert alone == pytest.approx(1 / 2**8, abs=0.002)
    assert paired.p == pytest.approx(1 / 2**4, abs=0.006)
    assert (paired.n, paired.n_clusters) == (8, 4)


def test_effects_share_flips_and_keep_their_shape():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(30, 2, 3))
    found = sign_flip(effects, n_permutations=500)
    assert found.p.shape == found.p_adjusted.shape == (2, 3)
    assert np.allclose(found.effect, effects.mean(axis=0))
    assert found.p[1, 2] == sign_flip(effects[:, 1, 2], n_permutations=500).p


def test_an_effect_of_zero_is_no_evidence():
    assert sign_flip(np.zeros(50)).p == 1.0
    assert sign_flip(np.zeros((50, 4)), correction="holm").p_adjusted.tolist() == [1.0] * 4


def test_the_scale_of_an_effect_does_not_matter():
    values = np.random.default_rng(1).normal(0.2, 1.0, size=(40, 1))
    table = values * np.array([1e-9, 1.0, 1e9])
    found = sign_flip(table, n_permutations=999)
    assert len(set(found.p.tolist())) == 1


N_DRAWS = 2000


def null_effects(kind: str, n: int, seed: int) -> np.ndarray:
    """Paired effects of ``n`` pairs that exchanging does not move, ``[pair, draw]``."""
    rng = np.random.default_rng(seed)
    shape = (n, N_DRAWS)
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "heavy tails":
        return rng.standard_t(2, size=shape)
    if kind == "skewed runs":
        # the metric of both runs is skewed; their difference is not
        return rng.lognormal(size=shape) - rng.lognormal(size=shape)
    family = np.repeat(rng.normal(size=(n // 2, N_DRAWS)), 2, axis=0)
    return family + 0.3 * rng.normal(size=shape)


@pytest.mark.parametrize("n", [20, 140])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "skewed runs", "families"])
def test_the_interchange_test_rejects_a_true_null_at_its_level(kind, n):
    cluster = np.arange(n) // 2 if kind == "families" else None
    for alternative in ("greater", "two-sided"):
        found = sign_flip(
            null_effects(kind, n, seed=n),
            cluster=cluster,
            alternative=alternative,
            n_permutations=1999,
        )
        assert 0.03 <= (found.p <= 0.05).mean() <= 0.07


def test_ignoring_families_rejects_too_often():
    """The counterpart of the test above: it can fail."""
    found = sign_flip(null_effects("families", 140, seed=140), n_permutations=1999)
    assert (found.p <= 0.05).mean() > 0.08


@pytest.mark.parametrize("correction", ["max-t", "holm", "bh"])
def test_many_heads_without_effect_give_few_false_alarms(correction):
    """Share of 300 studies of 64 heads with any head found; heads go together."""
    rng = np.random.default_rng(0)
    any_found = []
    for _ in range(300):
        effects = rng.normal(size=(40, 1)) + rng.normal(size=(40, 64))
        found = sign_flip(effects, correction=correction, n_permutations=1999)
        any_found.append((found.p_adjusted <= 0.05).any())
    assert np.mean(any_found) <= 0.08
    if correction == "max-t":
        assert np.mean(any_found) >= 0.02


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_bh_equals_scipy(p):
    assert np.allclose(adjust(p, "bh"), scipy_stats.false_discovery_control(p), atol=1e-12)


def test_holm_of_a_worked_case():
    assert adjust([0.01, 0.02, 0.03, 0.5], "holm").tolist() == pytest.approx(
        [0.04, 0.06, 0.06, 0.5]
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_between_p_and_bonferroni_and_keeps_order(p):
    found = adjust(p, "holm")
    assert (found >= np.array(p)).all()
    assert (found <= np.minimum(np.array(p) * len(p), 1) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_flip([]), "empty"),
        (lambda: sign_flip([1.0, np.nan]), "1 values that are not finite"),
        (lambda: sign_flip([1.0], alternative="less"), "alternative"),
        (lambda: sign_flip([1.0], n_permutations=0), "at least 1"),
        (lambda: sign_flip([1.0, 2.0], correction="none"), "correction"),
        (lambda: adjust([1.2], "bh"), "between 0 and 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(RequestError, match=message):
        call()
