"""How big requests are, to cut work into jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from refusal_nn.backends._limits import Limits
from refusal_nn.models import Model
from refusal_nn.tracing import Request

GRADIENT_COST = 3
"""A pass with gradients takes about three times as long as one without."""
FLOAT64_BYTES = 8


@dataclass(frozen=True)
class Size:
    """What requests cost: token positions computed, bytes sent and (estimated) received."""

    tokens: int = 0
    sent: int = 0
    received: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.tokens + other.tokens, self.sent + other.sent, self.received + other.received
        )

    def within(self, limits: Limits) -> bool:
        """Whether one job may be so large."""
        return (
            self.tokens <= limits.tokens
            and self.sent <= limits.sent_bytes
            and self.received <= limits.received_bytes
        )


def size_of(model: Model, requests: Sequence[Request]) -> Size:
    """Size of some requests."""
    total = Size()
    for request in requests:
        rows, width = request.inputs["input_ids"].shape
        new = int(request.options.get("max_new_tokens", 0)) if request.generate else 0
        tokens = rows * (width + new) * (GRADIENT_COST if request.plan["gradient"] else 1)
        tensors: dict[int, int] = {}
        _tensors([request.inputs, request.plan], tensors)
        received = 4 * rows * new + _captured(model, request, rows, width)
        total += Size(tokens, sum(tensors.values()), received)
    return total


def _tensors(value: Any, found: dict[int, int]) -> None:
    """Bytes of each tensor in nested plain data, by identity."""
    if isinstance(value, torch.Tensor):
        found[id(value)] = value.nbytes
    elif isinstance(value, Mapping):
        for inner in value.values():
            _tensors(inner, found)
    elif isinstance(value, list | tuple):
        for inner in value:
            _tensors(inner, found)


def _captured(model: Model, request: Request, rows: int, width: int) -> int:
    """Bytes of what a forward pass returns, from its captures."""
    if request.plan["after"] is not None:
        return 0  # made of the captures, by a rule unknown here, to be small
    held, total = set(request.plan["held"]), 0
    views = [view for visit in request.plan["visits"] for view in visit["views"]]
    for view in [*views, *request.plan["logits"]]:
        wide = model.arch.vocab_size if view["site"] == "logits" else model.d_model
        for name, args in view["captures"]:
            if name in held:
                continue
            points = width if args["index"] is None else args["index"].shape[1]
            kind = args["reduce"]
            if kind in (None, "live"):
                total += rows * points * wide * model.dtype.itemsize
            elif kind == "sum":
                total += len(args["weights"]) * points * wide * FLOAT64_BYTES
            elif kind == "log_probs":
                total += rows * wide * FLOAT64_BYTES
            else:
                total += rows * points * FLOAT64_BYTES
    return total
