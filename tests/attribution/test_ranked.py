"""The strongest nodes and edges."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from refusal_nn.attribution import ranked
from refusal_nn.errors import RequestError


def test_edges_are_ranked_by_size_and_those_that_are_not_there_left_out():
    mean = np.array([[1.0, np.nan], [-3.0, 2.0]])
    table = xr.Dataset(
        {
            "edge_score_mean": (("src", "dst"), mean),
            "edge_score_se": (("src", "dst"), mean / 10),
        },
        coords={"src": ["input", "m0"], "dst": ["m0", "logits"]},
    )
    found = ranked(table, 5)
    assert [(row["src"], row["dst"], row["score"]) for row in found] == [
        ("m0", "m0", -3.0),
        ("m0", "logits", 2.0),
        ("input", "m0", 1.0),
    ]
    assert found[0]["se"] == pytest.approx(-0.3)
    assert ranked(table, 0) == []


def test_a_table_without_scores_is_refused():
    with pytest.raises(RequestError, match="neither edge_score_mean"):
        ranked(xr.Dataset())
