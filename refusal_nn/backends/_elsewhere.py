"""Backends whose jobs run in another process."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refusal_nn.backends._size import Limits, size_of
from refusal_nn.models import Backend, Model
from refusal_nn.tracing import Request

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Facts


class Elsewhere(Backend):
    """A backend that packs batches into jobs, which travel.

    Attributes
    ----------
    limits : Limits
    """

    limits: Limits

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


def elsewhere(model: Model) -> Elsewhere:
    """The backend of a model whose jobs run in another process."""
    backend = model.backend
    assert isinstance(backend, Elsewhere), backend.name
    return backend
