"""Backend ``dry-run``: the very jobs of a server, run where this package cannot be imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from refusal_nn.backends._elsewhere import Elsewhere
from refusal_nn.backends._payload import Batches
from refusal_nn.backends._process import worker_of
from refusal_nn.backends._size import Limits
from refusal_nn.models import Loading, Model
from refusal_nn.models._load import load_here
from refusal_nn.store import JobLedger

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Facts


class DryRunBackend(Elsewhere):
    """Packs batches into jobs as for a server, and runs them in a process of this machine.

    Its model has its weights here too, for what is asked of them without a job.
    """

    name, device, deadline = "dry-run", None, None
    limits = Limits()

    @classmethod
    def load(cls, asked: Loading) -> Model:
        """A model with its weights."""
        return load_here(asked, cls())

    def collect(
        self, work: Batches, indices: Sequence[int], ledger: JobLedger, *, wait: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """The answers of batches, job by job."""
        for job in work.jobs(indices):
            saved = worker_of(work.model, weights=True).ask(work.block(job))
            yield from zip(job.batches, work.results(saved["answer"]), strict=True)

    def preflight(self, model: Model, block: bytes) -> None:
        """Nothing: the job itself is read there next."""

    def lacking(self, own: set[str], named: set[str]) -> set[str]:
        """What functions name is found there or not; where they are from must travel."""
        return own

    def check_facts(self, model: Model, facts: Facts) -> None:
        """Nothing: the process was given this very model."""
