"""The batches of a stage as requests to a model, and their answers as regions of the stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refusal_nn.models import Model
from refusal_nn.tracing._request import Request
from refusal_nn.tracing._work import Answers, Work

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.store import JobLedger

    Collect = Callable[[Answers], xr.Dataset]


@dataclass(frozen=True)
class Passes:
    """What each batch of a stage asks of a model, and what becomes of the answers.

    Given to a recorder's ``stage`` as its ``compute``. How batches are packed into jobs, and where
    those run, is the backend's business; so what a batch asks may not depend on results of the same
    stage, and a later request reaches what an earlier one made through its handle.

    Parameters
    ----------
    model : Model
    batch : callable
        ``batch(i, work)`` asks what batch ``i`` needs and returns a function that makes the region
        of that batch from the answers. With ``shared`` it is called as ``batch(i, work, shared)``.
    shared : callable, optional
        ``shared(work)`` asks what is run once a job, before its batches, for what it holds; what it
        returns (handles) is given to ``batch``.
    """

    model: Model
    batch: Callable[..., Collect]
    shared: Callable[[Work], Any] | None = None

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
        common = Work(self.model, shared=True)
        handles = () if self.shared is None else (self.shared(common),)
        collect: dict[int, Collect] = {}

        def asked(i: int) -> list[Request]:
            work = Work(self.model)
            collect[i] = self.batch(i, work, *handles)
            return work.requests

        backend = self.model.backend
        for i, results in backend.stream(self.model, indices, asked, common.requests, ledger):
            yield i, collect.pop(i)(Answers(results))
