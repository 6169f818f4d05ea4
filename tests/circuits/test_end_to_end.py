"""From scores to a tested circuit on the shipped model, with the figures that are promised of it."""

from __future__ import annotations

import pytest

from refusal_nn.attribution import Metric, attribute
from refusal_nn.circuits import Circuit, discover, evaluate, smallest
from refusal_nn.directions import discover_refusal_tokens
from refusal_nn.models import load_model
from refusal_nn.prompts import load_pairs, load_prompts


@pytest.mark.long
def test_the_smallest_faithful_circuit_stays_so_on_new_pairs_and_is_no_larger_than_an_exact_one():
    model, pairs = load_model("tiny-refuser"), load_pairs("tiny-pairs")
    tokens = discover_refusal_tokens(model, load_prompts("tiny-bench").train)
    metric = Metric.refusal_log_odds(tokens)

    def found(method: str, n: int) -> Circuit:
        scores = attribute(model, pairs.train[:n], metric, method=method)
        ranking = discover(scores, fraction=1.0)
        return smallest(model, ranking, pairs.val, metric, target=0.9).circuit

    circuit = found("eap-ig", len(pairs.train))
    # exact scores cost a pass an edge, so fewer pairs
    assert circuit.n_kept <= 1.25 * found("exact", 20).n_kept
    tree = evaluate(model, circuit, pairs.test, metric, draws=99, grid=False)
    assert float(tree["faithfulness"]) >= 0.9
    assert (tree["null"]["p_value"].values <= 0.01).all()
