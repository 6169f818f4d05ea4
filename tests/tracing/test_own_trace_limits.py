"""A trace of one's own ends in time, and with one sentence where its answer is no answer."""

from __future__ import annotations

import copy
from typing import Any

import nnsight
import pytest

from refusal_nn.backends import Limits, Local, Ndif, Preflight, Remote, Service
from refusal_nn.errors import BackendError
from refusal_nn.testing import tiny_module, wrap
from refusal_nn.tracing import pad

INPUTS = pad([[7, 8, 9]], 0).inputs()


def model_at(deadline: float) -> Any:
    # not the session's own tiny model: it would stay remote, and may have its process running already
    model = wrap(copy.deepcopy(tiny_module("llama")), name="remote-llama")
    model.backend = Ndif(Service("http://server"), "key", "org/model", Limits(deadline=deadline))
    return model


def test_the_check_before_sending_ends_at_the_deadline_and_can_be_made_again() -> None:
    model = model_at(0.05)  # its process takes longer to start
    with (
        pytest.raises(BackendError, match=r"did not end within 0\.05 s; pass a longer --deadline"),
        model.nnsight.trace(INPUTS, backend=Preflight(model)),
    ):
        nnsight.save(model.nnsight.model.layers[1].output)
    model.backend = Local()
    with model.nnsight.trace(INPUTS, backend=Preflight(model)):
        nnsight.save(model.nnsight.model.layers[1].output)


@pytest.mark.parametrize("answer", [b"", b"<html>"])
def test_an_answer_that_cannot_be_read_is_said_in_a_sentence(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_at(5)
    monkeypatch.setattr(Ndif, "collect", lambda *_, **__: iter([(0, answer)]))
    with (
        pytest.raises(BackendError, match="http://server sent back cannot be read"),
        model.nnsight.trace(INPUTS, backend=Remote(model, preflight=False)),
    ):
        nnsight.save(model.nnsight.model.layers[1].output)
