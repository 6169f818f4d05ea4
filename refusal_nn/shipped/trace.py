"""Where requests are traced: a forward pass, or a generation under edits.

Each function takes a wrapped model and plain data, and runs unchanged here, in a dry run and on a
server; the session around a job that travels is opened where the job is made into bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from refusal_nn.shipped.reductions import new_tokens
from refusal_nn.shipped.walk import all_steps, run_plan, walk

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Plan


def forward(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    plan: Plan,
    options: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """One forward pass of a batch with a plan; its captures.

    Parameters
    ----------
    model : nnsight model
    inputs : mapping
        ``input_ids``, ``attention_mask`` and, for padded batches, ``position_ids``.
    plan : dict
        From :func:`refusal_nn.tracing.build_plan`.
    options : mapping
        Further arguments of the model's forward, e.g. ``logits_to_keep``.
    """
    stop = not plan["logits"]
    # what is around the trace does not travel, so the grad mode of the pass is set inside it too
    with (
        torch.set_grad_enabled(plan["gradient"]),
        model.trace(dict(inputs), **options) as tracer,
    ):
        taken = nnsight.save(run_plan(model, plan))
        if stop:
            tracer.stop()
    return taken  # type: ignore[no-any-return]


def generate(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    plan: Plan,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Greedy generation of a batch under a plan, at every step; the new tokens, ``[row, token]``."""
    edited = edit(model, plan) if plan["visits"] else model
    width = inputs["input_ids"].shape[1]
    with warnings.catch_warnings():
        # an open loop over steps ends by parking on a step the model never runs; nnsight says so
        warnings.filterwarnings("ignore", message="(?s).*was never reached")
        with edited.generate(dict(inputs), **options) as tracer:
            ids = nnsight.save(new_tokens(tracer.result, width))
    return ids  # type: ignore[no-any-return]


def edit(model: Any, plan: Plan) -> Any:
    """A view of the model that applies a plan at every step of a generation."""
    every = any(visit["decode"] for visit in plan["visits"])
    with model.edit() as (_tracer, edited):
        # an open loop whose later turns wait for nothing would never end
        for step in all_steps() if every else (0,):
            walk(edited, plan, step)
    return edited
