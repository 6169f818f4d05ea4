"""Backend ``local``: passes on this machine, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from refusal_nn.errors import BackendError, RefusalNNError
from refusal_nn.models import Backend, Loading, Model
from refusal_nn.models._load import load_here
from refusal_nn.shipped.job import hold, run_batch
from refusal_nn.store import JobLedger
from refusal_nn.tracing import Request, Results, judge_check, residual_error


class Local(Backend):
    """Runs a model here."""

    name, device, deadline = "local", None, None

    @classmethod
    def load(cls, asked: Loading) -> Model:
        """A model with its weights."""
        return load_here(asked, cls())

    def prepare(self, model: Model) -> None:
        """Measure the map once."""
        if not model.verified:
            judge_check(model, residual_error(model))

    def run(self, model: Model, requests: Sequence[Request]) -> Results:
        """Run the requests of one batch."""
        with _said(model, requests):
            return run_batch(model.nnsight, [r.plain(model.device) for r in requests], [])

    def stream(
        self,
        model: Model,
        indices: Sequence[int],
        asked: Callable[[int], Sequence[Request]],
        shared: Sequence[Request],
        ledger: JobLedger,
    ) -> Iterator[tuple[int, Results]]:
        """Results of the batches of a stage, one at a time."""
        self.prepare(model)
        with _said(model, shared):
            held = hold(model.nnsight, [r.plain(model.device) for r in shared])
        for i in indices:
            requests = asked(i)
            with _said(model, requests):
                results = run_batch(model.nnsight, [r.plain(model.device) for r in requests], held)
            yield i, results


@contextmanager
def _said(model: Model, requests: Sequence[Request]) -> Iterator[None]:
    """Turn what goes wrong in passes into one sentence; one trace at a time."""
    try:
        with model.lock:
            yield
    except RefusalNNError:
        raise
    except torch.OutOfMemoryError as error:
        shapes = [r.inputs["input_ids"].shape for r in requests]
        rows, width = max(shapes, key=math.prod)
        raise BackendError(
            f"out of memory on {model.device} with a batch of {rows} rows of {width} tokens; "
            "pass a smaller --batch-size."
        ) from error
    except Exception as error:
        raise BackendError(
            f"model {model.name!r} failed on backend local: {type(error).__name__}: {error}"
        ) from error
