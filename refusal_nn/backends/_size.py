"""How big requests are, and how work is cut into jobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch

from refusal_nn.errors import RequestError
from refusal_nn.models import Model
from refusal_nn.shipped.plans import leaves
from refusal_nn.tracing import Request

GRADIENT_COST = 3
"""A pass with gradients takes about three times as long as one without."""
FLOAT64_BYTES = 8
RECEIVED_AT_MOST = 16
"""How many times the bytes that a job's results should have are taken: a batch may be larger alone."""


@dataclass(frozen=True)
class Limits:
    """How work is cut into jobs, and how long one is waited for.

    Parameters
    ----------
    tokens : int
        Token positions a job computes, prompts and generated tokens of all its rows: a bound on the
        time a job takes. A batch above it is a job of its own.
    sent_bytes : int
        Uncompressed tensors of a job's requests, in bytes.
    received_bytes : int
        Estimated size of a job's results, in bytes. Results of more than 16 times as many are not
        unpacked.
    in_flight : int
        Jobs submitted and not collected at one time.
    deadline : float
        Seconds without news of any job (a change of state or of its place in the queue, a result)
        after which waiting ends. A question that fails for now is repeated for so long.
    retries : int
        Times a job is sent again after it failed for a reason that may pass.
    backoff : float
        Seconds before the first repetition; each further one waits twice as long, up to 30 s.
    poll : float
        Seconds between two questions about jobs at first; they grow to 20 times that.
    """

    tokens: int = 400_000
    sent_bytes: int = 64 << 20
    received_bytes: int = 256 << 20
    in_flight: int = 3
    deadline: float = 1800.0
    retries: int = 4
    backoff: float = 0.5
    poll: float = 0.1

    def __post_init__(self) -> None:
        above = ("tokens", "sent_bytes", "received_bytes", "in_flight", "deadline", "poll")
        for name in (*above, "retries", "backoff"):
            value = getattr(self, name)
            if not math.isfinite(value):  # no comparison below is true of a nan
                raise RequestError(f"{name} must be a finite number, got {value}.")
            if name in above and value <= 0:
                raise RequestError(f"{name} must be above 0, got {value}.")
            if value < 0:
                raise RequestError(f"{name} must be 0 or more, got {value}.")

    @property
    def most_received(self) -> int:
        """Bytes of a job's results that are taken, whatever a server sends."""
        return RECEIVED_AT_MOST * self.received_bytes


@dataclass(frozen=True)
class Size:
    """What requests cost: token positions computed, bytes sent and (estimated) received."""

    tokens: int = 0
    sent: int = 0
    received: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(*map(sum, zip(astuple(self), astuple(other), strict=True)))

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
        found = leaves([request.inputs, request.plan])
        sent = {id(x): x.nbytes for x in found if isinstance(x, torch.Tensor)}
        received = 4 * rows * new + _captured(model, request, rows, width)
        total += Size(tokens, sum(sent.values()), received)
    return total


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
