"""Attribution on a CUDA device gives the CPU's scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.attribution import Metric
from refusal_nn.testing import D_MODEL, random_pairs, tiny_model, tiny_module, wrap
from tests.attribution._made import LOG_ODDS, attribute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.mark.parametrize("method", ["eap-ig", "exact"])
@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
def test_scores_are_those_of_the_cpu(family, level, method):
    pairs = random_pairs(2)
    there = wrap(tiny_module(family, dtype=torch.float64).to("cuda"), name=family)
    here = tiny_model(family, torch.float64)
    options = {"method": method, "level": level}
    for metric in (LOG_ODDS, Metric.kl(), Metric.projection(np.ones(D_MODEL), 2)):
        found, expected = (
            attribute(model, pairs, metric, **options)[f"{level}_score"].values
            for model in (there, here)
        )
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.nanmax(np.abs(expected)))
