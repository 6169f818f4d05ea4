"""Tracing: what is asked of a model, compiled to what travels to it.

:func:`run` executes requests on the model's backend; :func:`capture` and :func:`generate` are what
most scripts need. A trace of your own can use the interventions and site names too, by calling
:func:`walk` inside it::

    batch = pad([ids], model.pad_token)
    plan = build_plan(model.arch, interventions, captures, batch=batch)
    with model.nnsight.trace(batch.inputs()):
        taken = nnsight.save(walk(model.nnsight, plan))
"""

from refusal_nn._renamed import renamed
from refusal_nn.shipped.walk import walk
from refusal_nn.tracing._batch import (
    Batch,
    Request,
    Results,
    forward_request,
    generate_request,
    of_rows,
    pad,
)
from refusal_nn.tracing._check import check_requests, judge_check, residual_error, verify
from refusal_nn.tracing._jobs import Answers, Handle, Passes, Work
from refusal_nn.tracing._limits import check_length, context_length
from refusal_nn.tracing._loop import Optimizer, Steps
from refusal_nn.tracing._plan import Capture, Ref, Start, build_plan
from refusal_nn.tracing._run import (
    capture,
    capture_tokens,
    completions,
    generate,
    run,
    whole_numbers,
)

__all__ = [
    "Answers",
    "Batch",
    "Capture",
    "Handle",
    "Optimizer",
    "Passes",
    "Ref",
    "Request",
    "Results",
    "Start",
    "Steps",
    "Work",
    "build_plan",
    "capture",
    "capture_tokens",
    "check_length",
    "check_requests",
    "completions",
    "context_length",
    "forward_request",
    "generate",
    "generate_request",
    "judge_check",
    "of_rows",
    "pad",
    "residual_error",
    "run",
    "verify",
    "walk",
    "whole_numbers",
]

__getattr__ = renamed(
    __name__,
    {
        "DryRun": "refusal_nn.backends:DryRun",
        "Preflight": "refusal_nn.backends:Preflight",
        "Remote": "refusal_nn.backends:Remote",
        "execute": "refusal_nn.tracing:run",
    },
)
