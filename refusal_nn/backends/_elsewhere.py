"""Backends whose jobs run in another process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from refusal_nn.backends._payload import Batches
from refusal_nn.backends._size import Limits, size_of
from refusal_nn.models import Backend, Model
from refusal_nn.store import JobLedger
from refusal_nn.tracing import Request, Results

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Facts


class Elsewhere(Backend):
    """A backend that packs batches into jobs, which travel.

    Attributes
    ----------
    limits : Limits
    """

    limits: Limits

    def run(self, model: Model, requests: Sequence[Request]) -> Results:
        """Run requests as one job and wait for it."""
        work = Batches(model, lambda _: requests)
        ((_, answer),) = self.collect(work, [0], JobLedger(), wait=True)
        return answer  # type: ignore[no-any-return]

    def stream(
        self,
        model: Model,
        indices: Sequence[int],
        asked: Callable[[int], Sequence[Request]],
        shared: Sequence[Request],
        ledger: JobLedger,
    ) -> Iterator[tuple[int, Results]]:
        """Results of the batches of a stage, as they come."""
        return self.collect(Batches(model, asked, shared), indices, ledger)

    @abstractmethod
    def collect(
        self, work: Batches, indices: Sequence[int], ledger: JobLedger, *, wait: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """The answers of batches, as they come; ``wait``: even where waiting is left to later."""

    def fits(self, model: Model, requests: Sequence[Request]) -> bool:
        """Whether requests are within the limits of a job."""
        return size_of(model, requests).within(self.limits)

    @abstractmethod
    def preflight(self, model: Model, block: bytes) -> None:
        """See that a job can be read where this package is missing."""

    @abstractmethod
    def lacking(self, own: set[str], named: set[str]) -> set[str]:
        """Of modules that do not travel, those that are not there.

        Parameters
        ----------
        own, named : set of str
            Modules that functions of the user's are from, and that they name.
        """

    @abstractmethod
    def check_facts(self, model: Model, facts: Facts) -> None:
        """Refuse the model there if it is not the one that is meant."""
