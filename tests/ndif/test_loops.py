"""A loop on a real server: the numbers of here, in a quarter of the jobs of one a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refusal_nn import models
from refusal_nn.store import JobLedger, MemoryRecorder
from tests.ndif.control import Stack
from tests.store.looping import recorder
from tests.tracing.ascent import Ascent


def test_forty_steps_at_a_server_are_those_of_here_in_few_jobs(
    stack: Stack, tmp_path: Path
) -> None:
    here = Ascent(models.load_model("tiny-refuser")).run(MemoryRecorder())
    remote = models.load_model("tiny-refuser", backend="ndif", host=stack.url())
    with recorder(tmp_path) as run:
        found = Ascent(remote).run(run)
        jobs = JobLedger(run.partial / "ascend.jobs.json").jobs
    assert [job["state"] for job in jobs] == ["done"] * 3  # 16, 16 and 8 of the 40 steps
    for name, values in here.records.data_vars.items():
        np.testing.assert_allclose(found.records[name].values, values.values, rtol=0, atol=1e-5)
    for name, values in here.state.data_vars.items():
        np.testing.assert_allclose(found.state[name].values, values.values, rtol=0, atol=1e-5)
