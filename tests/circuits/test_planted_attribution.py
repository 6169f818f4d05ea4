"""Attribution finds the circuits that are known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from refusal_nn.attribution import attribute
from refusal_nn.circuits import discover, evaluate
from refusal_nn.testing import PLANTED, planted, planted_pairs

BARS = {"exact": 1.0, "eap-ig": 0.98}


@pytest.mark.parametrize("method", BARS)
@pytest.mark.parametrize("name", PLANTED)
def test_planted_edges_rank_first(name, method):
    p = planted(name)
    table = attribute(p.model, planted_pairs()["train"][::2], p.metric, method=method)
    size = np.abs(table["edge_score_mean"].values)[p.graph.mask]
    truth = p.truth.kept[p.graph.mask]
    # sums of recall steps round in the last digit
    assert average_precision_score(truth, size) >= BARS[method] - 1e-12
    assert roc_auc_score(truth, size) >= BARS[method] - 1e-12


@pytest.mark.parametrize("name", PLANTED)
def test_the_circuit_found_is_the_planted_one_and_works_on_new_objects(name):
    p = planted(name)
    train = planted_pairs()["train"]
    circuit = discover(attribute(p.model, train, p.metric), edges=p.truth.n_kept)
    assert set(circuit.edges()) == set(p.truth.edges())
    tree = evaluate(
        p.model,
        circuit,
        planted_pairs()["test"],
        p.metric,
        discovery=train,
        draws=99,
        nulls=["layer-matched"],
        n_resamples=199,
    )
    assert float(tree["faithfulness"]) > 0.99
    assert tree["null"]["p_value"].item() <= 0.01
