"""What a circuit file says beside its edges: the width of the model and the metric of the scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refusal_nn.attribution import EdgeGraph, Metric
from refusal_nn.circuits import Circuit, export, read
from refusal_nn.errors import RequestError
from refusal_nn.testing import GRAPHS, random_circuit, tiny_model


def test_a_file_of_a_model_of_another_width_is_refused_though_it_names_no_model(
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    circuit = Circuit.from_edges(EdgeGraph.of(model.arch), [("input", "m0"), ("m0", "logits")])
    for end in ("json", "pt"):
        wide = export(circuit, tmp_path / f"wide.{end}", d_model=4096)
        with pytest.raises(RequestError, match=rf"d_model 4096 \(model: {model.d_model}\)"):
            read(wide, model)
        assert read(wide, circuit.graph).attrs["d_model"] == 4096
        same = export(circuit, tmp_path / f"same.{end}", d_model=model.d_model)
        assert read(same, model).edges() == circuit.edges()


@pytest.mark.parametrize(
    "metric",
    [
        Metric.refusal_log_odds([5, 7]),
        Metric.logit_difference([5], [7]),
        Metric.projection(np.arange(1.0, 17.0), 2),
        Metric.kl(),
    ],
    ids=lambda metric: metric.kind,
)
def test_a_file_keeps_the_metric_its_scores_are_of(metric: Metric, tmp_path: Path) -> None:
    circuit = random_circuit(GRAPHS["grouped"], **metric.to_attrs())
    for end in ("json", "pt"):
        back = read(export(circuit, tmp_path / f"c.{end}"), circuit.graph)
        assert Metric.from_attrs(back.attrs).to_attrs() == metric.to_attrs()
        np.testing.assert_allclose(back.scores, circuit.scores, rtol=2e-7)


def test_a_metric_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    metric = Metric.refusal_log_odds([5])
    circuit = random_circuit(GRAPHS["grouped"], **metric.to_attrs())
    tree = json.loads(export(circuit, tmp_path / "c.json").read_text())
    for change, message in (
        ({"metric": "mood"}, "its metric is 'mood'"),
        ({"metric_tokens": ["I"]}, "its metric cannot be read"),
        ({"metric_against": 3}, "its metric cannot be read"),
    ):
        changed = {**tree, "refusal_nn": {**tree["refusal_nn"], **change}}
        (tmp_path / "d.json").write_text(json.dumps(changed))
        with pytest.raises(RequestError, match=message):
            read(tmp_path / "d.json", circuit.graph)
