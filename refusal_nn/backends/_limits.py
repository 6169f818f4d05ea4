"""How work is cut into jobs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from refusal_nn.errors import RequestError


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
        Estimated size of a job's results, in bytes.
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
