"""Requests run on a model that answers at once: here, or in the dry run's process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from refusal_nn.errors import BackendError, RefusalNNError
from refusal_nn.models import Model
from refusal_nn.shipped import trace as _trace
from refusal_nn.shipped.walk import bind
from refusal_nn.tracing._request import Request, Results


class Executor:
    """Runs requests on a model that answers at once: here, or in the dry run's process.

    What requests hold stays with the executor: results of the job's shared requests for all
    batches, results of a batch's own requests for that batch.
    """

    def __init__(self, model: Model, shared: Sequence[Request] = ()) -> None:
        self.model = model
        self.shared: list[dict[str, torch.Tensor]] = []
        self.where: Mapping[str, Any] = {}
        self.device = model.device
        if model.backend == "dry-run":
            from refusal_nn.backends._dry_run import DryRun

            self.where = {"backend": DryRun(model)}
            self.device = torch.device("cpu")
        for request in shared:
            self.shared.append(self._run(request, self.shared)[1])

    def batch(self, requests: Sequence[Request]) -> Results:
        """Run the requests of one batch; one dict of CPU tensors a request."""
        own: list[dict[str, torch.Tensor]] = []
        results: Results = []
        for request in requests:
            out, held = self._run(request, own)
            own.append(held)
            results.append({name: tensor.cpu() for name, tensor in out.items()})
        return results

    def _run(
        self, request: Request, own: list[dict[str, torch.Tensor]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What a request returns and what it holds."""
        if self.model.backend == "dry-run":
            from refusal_nn.backends._functions import check_functions

            check_functions(self.model, [request])
        plan = bind(request.plan, own, self.shared)
        inputs = {name: tensor.to(self.device) for name, tensor in request.inputs.items()}
        with self.model.lock:
            out = _run(self.model, request, inputs, plan, self.where)
        held = set(plan["held"])
        return (
            {k: v for k, v in out.items() if k not in held},
            {k: v for k, v in out.items() if k in held},
        )


def execute(model: Model, requests: Sequence[Request]) -> Results:
    """Run a job on the model's backend; one dict of CPU tensors a request.

    Raises
    ------
    BackendError
        If the model or the backend fails; the message holds what it said.
    """
    if model.remote is not None:
        from refusal_nn.tracing import _ndif

        return _ndif.execute(model, requests)
    return Executor(model).batch(requests)


def _run(
    model: Model,
    request: Request,
    inputs: Mapping[str, torch.Tensor],
    plan: dict[str, Any],
    where: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    try:
        if request.generate:
            ids = _trace.generate(model.nnsight, inputs, plan, request.options, where)
            return {"ids": ids}
        return _trace.forward(model.nnsight, inputs, plan, request.options, where)
    except RefusalNNError:
        raise
    except torch.OutOfMemoryError as error:
        rows, width = request.inputs["input_ids"].shape
        raise BackendError(
            f"out of memory on {model.device} with a batch of {rows} rows of {width} tokens; "
            "pass a smaller --batch-size."
        ) from error
    except Exception as error:
        raise BackendError(
            f"model {model.name!r} failed on backend {model.backend}: "
            f"{type(error).__name__}: {error}"
        ) from error
