"""Methods against circuits that are known by construction, distractors active beside them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from refusal_nn.attribution import attribute
from refusal_nn.testing import PLANTED, planted, planted_pairs


@pytest.mark.parametrize(("method", "least"), [("exact", 1.0), ("eap-ig", 0.98)])
@pytest.mark.parametrize("name", PLANTED)
def test_planted_edges_are_found(name, method, least):
    known = planted(name)
    there = known.graph.mask
    found = attribute(known.model, planted_pairs()["train"][:8], known.metric, method=method)
    size = np.abs(found["edge_score_mean"].values[there])
    truth = known.truth.kept[there]
    assert 0 < truth.sum() < 0.1 * len(truth)
    # distractors carry something: many other edges are not zero, even where patching them rounds
    assert (size[~truth] > 0).sum() > 20
    assert average_precision_score(truth, size) >= least - 1e-9
    assert roc_auc_score(truth, size) >= least - 1e-9
