"""The load-time self-check of the architecture map, done by a model's first trace."""

from __future__ import annotations

import torch

from refusal_nn.errors import ModelError
from refusal_nn.models import Model
from refusal_nn.shipped.reductions import RESIDUAL_SITES
from refusal_nn.tracing._batch import Request, forward_request, pad
from refusal_nn.tracing._plan import Capture

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest allowed error of the residual sum, as a fraction of the largest magnitude at the block."""


def check_requests(model: Model) -> list[Request]:
    """The pass that measures the map: one short row of ordinary tokens; ``error`` ``[layer]``."""
    row = [(7 * i + 11) % model.arch.vocab_size for i in range(8)]
    captures = [Capture(site, site) for site in RESIDUAL_SITES]
    batch = pad([row], 0)
    return [forward_request(model, batch, captures, after=("residual_error", {}))]


def residual_error(model: Model) -> torch.Tensor:
    """``|resid_post - (resid_pre + attn_out + mlp_out)|`` over its largest magnitude, ``[layer]``.

    Measured on one short row of ordinary tokens.
    """
    (out,) = model.backend.run(model, check_requests(model))
    return out["error"]


def verify(model: Model) -> None:
    """Measure the map once; later calls return at once.

    Raises
    ------
    ModelError
        If the residual stream does not add up on the map, or the model's activations are not
        finite.
    """
    model.backend.prepare(model)
    if not model.verified:
        model.backend.run(model, [])  # the check rides in the first job, whatever else that is


def judge_check(model: Model, error: torch.Tensor) -> None:
    """Refuse a model that :func:`residual_error` says does not fit its map; else it is verified.

    Raises
    ------
    ModelError
        As :func:`verify`.
    """
    if not torch.isfinite(error).all():
        raise ModelError(
            f"model {model.name!r} gives NaN or infinity in a forward pass of ordinary tokens; check "
            "its weights, or load it in another --dtype."
        )
    worst = int(error.argmax())
    if error[worst] > TOLERANCE[model.dtype]:
        raise ModelError(
            f"model {model.name!r} ({model.arch.family}) does not fit our map of its family: at block "
            f"{worst}, resid_post differs from resid_pre + attn_out + mlp_out by "
            f"{float(error[worst]):.1e} of the largest activation; interventions would act at the "
            "wrong place, so this architecture is not supported."
        )
    model.verified = True
