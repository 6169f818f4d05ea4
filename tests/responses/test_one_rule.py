"""Whatever made a text, it is judged by the same rule: evaluate and patched generation agree."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import refusal_nn as rn
from refusal_nn import judges, stats
from refusal_nn.errors import WorkError
from refusal_nn.patching import generate, of_heads
from refusal_nn.responses import Grid, calibrated, judge, nll_limit, rate_table
from refusal_nn.testing import tiny_model
from tests.patching.conftest import made_pairs

EXCHANGE = {"head": of_heads([(1, 0)])}


@pytest.fixture(scope="module")
def patched() -> xr.Dataset:
    return generate(tiny_model("llama"), made_pairs(6), EXCHANGE, max_new_tokens=12)


def test_unpatched_prompts_are_judged_as_evaluate_judges_them(patched: xr.Dataset) -> None:
    pairs = made_pairs(6)
    plain = rn.evaluate(tiny_model("llama"), pairs.prompts(), {}, max_new_tokens=12, batch_size=5)
    assert patched.attrs["nll_limit"] == pytest.approx(plain.attrs["nll_limit"], abs=1e-5)
    both = patched.sel(intervention=["harmful", "harmless"])
    for name in ("completion", "n_tokens", "repetition", "coherent", "refused"):
        expected = plain[name].sel(intervention="baseline").values
        np.testing.assert_array_equal(both[name].values.ravel(), expected)


def test_the_limit_gates_the_patched_completions(patched: xr.Dataset) -> None:
    own = patched["nll"].sel(intervention="harmless").values
    assert patched.attrs["nll_limit"] == pytest.approx(np.nanquantile(own, 0.99))
    expected = judges.coherent(patched["repetition"], patched["nll"], patched.attrs["nll_limit"])
    np.testing.assert_array_equal(
        patched["coherent"].values, expected & (patched["n_tokens"].values > 0)
    )
    assert not patched["coherent"].sel(intervention="harmful").all(), (
        "the limit must gate something"
    )


def test_completions_too_short_to_calibrate_on_are_marked_as_not_gated() -> None:
    found = generate(tiny_model("llama"), made_pairs(), EXCHANGE, max_new_tokens=4)
    assert found.attrs["nll_limit"] is None
    assert found["nll"].isnull().all()
    fluent = found["repetition"].values <= judges.REPETITION_LIMIT
    np.testing.assert_array_equal(found["coherent"].values, fluent & (found["n_tokens"] > 0))


def test_without_a_limit_a_long_completion_is_judged_by_repetition_alone() -> None:
    dims = ("intervention", "prompt")
    measured = xr.Dataset(
        {
            "completion": (dims, np.array([["Yes", "I cannot do", "I cannot", ""]], dtype=object)),
            "n_tokens": (dims, [[1, 9, 9, 0]]),
            "nll": (dims, [[np.nan, 50.0, 1.0, np.nan]]),
            "repetition": (dims, [[0.0, 0.1, 0.5, 0.0]]),
        },
        coords={"intervention": ["baseline"], "harm": ("prompt", ["harmless"] + ["harmful"] * 3)},
    )
    assert nll_limit(measured["nll"].values[0, :1]) is None
    found = judge(measured, None)
    assert found.attrs["nll_limit"] is None
    assert found["coherent"].values.tolist() == [[True, True, False, False]]
    assert found["refused"].values.tolist() == [[False, True, False, False]]
    with pytest.raises(WorkError, match="nothing to calibrate"):
        calibrated(measured)


def test_a_rate_over_no_label_is_that_of_all_prompts(patched: xr.Dataset) -> None:
    table = rate_table(patched, (), np.ones(patched.sizes["prompt"], dtype=bool))
    for i, refused in enumerate(patched["refused"].values):
        expected = stats.rate(refused, cluster=patched["family"].values)
        found = {name: values[i] for name, (_, values) in table.items()}
        assert (found["refusal_rate"], found["refusal_rate_n"]) == (expected.rate, expected.n)
        assert found["refusal_rate_low"] == expected.low == patched["refusal_rate_low"].values[i]
        assert found["refusal_rate_high"] == expected.high
        assert found["coherent_rate"] == patched["coherent"].values[i].mean()


def test_batches_hold_every_prompt_of_every_condition_once() -> None:
    grid = Grid(["a", "b"], {}, n=5, batch_size=2)
    asked = [(grid.of(i)[0], k) for i in range(len(grid.batches)) for k in range(5)[grid.of(i)[1]]]
    assert asked == [(name, k) for name in ("a", "b") for k in range(5)]
