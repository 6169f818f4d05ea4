"""Roles in a cascade, bands of blocks, and stability under resampling."""

from __future__ import annotations

import numpy as np
import pytest

from refusal_nn.patching._roles import bands, roles, stability

NAN = float("nan")


def test_roles_of_a_chain_with_a_bystander():
    heads = [(1, 1), (2, 0), (3, 2), (3, 3)]
    cascade = np.array(
        [
            [NAN, 0.9, 0.8, 0.1],
            [NAN, NAN, 0.7, 0.2],
            [NAN, NAN, NAN, NAN],
            [NAN, NAN, NAN, NAN],
        ]
    )
    assert roles(heads, cascade) == {
        (1, 1): "gate",
        (2, 0): "relay",
        (3, 2): "amplifier",
        (3, 3): "independent",
    }


def test_bands_are_runs_of_neighbouring_blocks_of_one_role():
    found = {
        (1, 0): "gate",
        (2, 3): "gate",
        (4, 1): "amplifier",
        (5, 0): "amplifier",
        (5, 2): "amplifier",
        (8, 1): "amplifier",
    }
    assert bands(found) == {
        (1, 0): 0,
        (2, 3): 0,
        (4, 1): 1,
        (5, 0): 1,
        (5, 2): 1,
        (8, 1): 2,
    }
    assert bands({}) == {}


def made(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Effects of two sure heads and one that is near the least effect, of 2 x 2 x 4."""
    rng = np.random.default_rng(seed)
    effect = 0.02 * rng.normal(size=(n, 2, 2, 4))
    effect[:, :, 0, 1] += 0.5
    effect[:, 1, 1, 2] += 0.4
    effect[:, 0, 1, 3] += 0.01
    return effect, np.ones(n)


def test_sure_heads_are_always_found_again_and_noise_never():
    effect, difference = made()
    selected = np.zeros((2, 4), dtype=bool)
    selected[0, 1] = selected[1, 2] = True
    options = {"family": np.arange(60).astype(object), "alpha": 0.05, "min_effect": 0.01}
    frequency, jaccard, pairwise = stability(effect, difference, selected=selected, **options)
    assert frequency[0, 1] == frequency[1, 2] == 1.0
    assert 0.05 < frequency[1, 3] < 0.95
    quiet = np.ones((2, 4), dtype=bool)
    quiet[0, 1] = quiet[1, 2] = quiet[1, 3] = False
    assert frequency[quiet].max() < 0.05
    borderline = frequency[1, 3]
    # a resample holds the two, and with that frequency the third
    assert jaccard == pytest.approx(1 - borderline / 3, abs=0.02)
    both = borderline**2 + (1 - borderline) ** 2
    assert pairwise == pytest.approx(both + (1 - both) * 2 / 3, abs=0.02)


def test_resamples_are_of_families():
    """One family carries everything: it is missing from a third of the resamples."""
    effect = np.zeros((40, 1, 1, 1))
    effect[:4] = 10.0
    effect += 1e-3 * np.random.default_rng(0).normal(size=effect.shape)
    family = np.repeat(np.arange(10), 4).astype(object)
    frequency, _, _ = stability(
        effect,
        np.ones(40),
        family=family,
        selected=np.ones((1, 1), dtype=bool),
        alpha=0.3,
        min_effect=0.01,
        n_resamples=1500,
    )
    assert frequency[0, 0] == pytest.approx(1 - (1 - 1 / 10) ** 10, abs=0.03)


def test_nothing_found_has_no_jaccard():
    effect = np.random.default_rng(0).normal(size=(30, 2, 1, 2)) * 1e-6
    frequency, jaccard, pairwise = stability(
        effect,
        np.ones(30),
        family=np.arange(30).astype(object),
        selected=np.zeros((1, 2), dtype=bool),
        alpha=0.05,
        min_effect=0.01,
    )
    assert frequency.max() == 0
    assert np.isnan(jaccard)
    assert np.isnan(pairwise)
