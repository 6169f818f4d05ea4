"""Attribution as a run: what is kept, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from refusal_nn import store
from refusal_nn.attribution import attribute
from refusal_nn.errors import RequestError
from refusal_nn.runs import Keeping, Run, record
from refusal_nn.testing import random_pairs, tiny_model
from tests.attribution._made import LOG_ODDS

BATCHES = 2 * 4  # two pairs a pass; three blocks and the logits


class StoppedError(Exception):
    pass


class Progress:
    """Notes finished batches of the edges; stops after some of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.done: list[int] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "edge_scores":
            assert total == BATCHES
            self.done.append(done)
            if done == self.stop:
                raise StoppedError


def exact_run(stores: Path, progress: Progress) -> Run:
    return record(
        attribute,
        tiny_model("llama"),
        random_pairs(3),
        LOG_ODDS,
        method="exact",
        batch_size=16,
        keep=Keeping(stores, progress=progress),
    )


def test_exact_scores_go_on_where_they_stopped(tmp_path):
    with pytest.raises(StoppedError):
        exact_run(tmp_path, Progress(stop=3))
    again = Progress()
    run = exact_run(tmp_path, again)
    assert again.done == list(range(3, BATCHES + 1)), "finished batches are not computed again"
    store.verify(run.path)
    assert run.name.startswith("attribute-edges-tiny-llama-")
    whole = attribute(tiny_model("llama"), random_pairs(3), LOG_ODDS, method="exact", batch_size=16)
    stored = run.tree.to_dataset().load()
    xr.testing.assert_equal(stored["edge_score"].drop_attrs(), whole["edge_score"].drop_attrs())
    assert stored.attrs["n_heads"] == 4
    assert exact_run(tmp_path, Progress()).reused


def test_an_unknown_level_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RequestError, match="unknown level 'head'"):
        record(
            attribute, tiny_model("llama"), random_pairs(1), level="head", keep=Keeping(tmp_path)
        )
    assert list(tmp_path.iterdir()) == []
