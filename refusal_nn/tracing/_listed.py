"""The batches of a stage as lists of requests; being replaced by :class:`Passes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from refusal_nn.models import Model
from refusal_nn.tracing._request import Request, Results

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.store import JobLedger


@dataclass(frozen=True)
class ListedPasses:
    """What each batch of a stage asks of a model, and what becomes of the answers.

    Given to a recorder's ``stage`` as its ``compute``. How batches are packed into jobs, and where
    those run, is the backend's business; so the requests of a batch may not depend on results of
    the same stage, and a later request reaches what an earlier one made through a
    :class:`~refusal_nn.tracing.Ref`.

    Parameters
    ----------
    model : Model
    requests : callable
        ``requests(i)``: what batch ``i`` asks, in order.
    collect : callable
        ``collect(i, results)``: the region of batch ``i``, from one dict of CPU tensors a request.
    shared : callable, optional
        Makes requests that are run once a job, before its batches, for what they hold.
    """

    model: Model
    requests: Callable[[int], Sequence[Request]]
    collect: Callable[[int, Results], xr.Dataset]
    shared: Callable[[], Sequence[Request]] | None = None

    def stream(self, indices: Sequence[int], ledger: JobLedger) -> Iterator[tuple[int, xr.Dataset]]:
        """Yield ``(batch, its region)`` for each of ``indices``.

        Raises
        ------
        BackendError
            If the model or the backend fails.
        ModelError
            If the residual stream does not add up on the architecture map (first call only).
        """
        if not indices:
            return
        shared = self.shared() if self.shared is not None else ()
        backend = self.model.backend
        for i, results in backend.stream(self.model, indices, self.requests, shared, ledger):
            yield i, self.collect(i, results)
