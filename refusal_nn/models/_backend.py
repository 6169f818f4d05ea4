"""Where a model's jobs run: what every backend does, and which there are.

Backends stand above models, so they are found by name when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypedDict

import torch

from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.backends import Limits
    from refusal_nn.models._model import Model
    from refusal_nn.store import JobLedger
    from refusal_nn.tracing import Request, Results

BACKENDS = {
    "local": "refusal_nn.backends:Local",
    "ndif": "refusal_nn.backends:Ndif",
    "dry-run": "refusal_nn.backends:DryRunBackend",
}
"""Name to the class, as ``module:name``."""


class Reading(TypedDict, total=False):
    """How a model's files are read: keywords of ``from_pretrained``."""

    revision: str | None
    trust_remote_code: bool
    attn_implementation: str | None


class Elsewhere(TypedDict, total=False):
    """How a server is asked: keywords of :func:`refusal_nn.load_model` that are for ``ndif``."""

    host: str | None
    plain_http: bool
    limits: Limits | None
    detach: bool


@dataclass(frozen=True)
class Loading:
    """What :func:`refusal_nn.load_model` was asked for.

    Attributes
    ----------
    name, source : str
        As given, and the folder or hub id it means.
    dtype : torch.dtype or None
        None: the checkpoint's own, or what the server runs.
    reading : Reading
        All of its keys.
    chat_template, device : str or None
    elsewhere : Elsewhere
        Those that were given.
    """

    name: str
    source: str
    dtype: torch.dtype | None = None
    reading: Reading = field(default_factory=Reading)
    chat_template: str | None = None
    device: str | None = None
    elsewhere: Elsewhere = field(default_factory=Elsewhere)


class Backend(Protocol):
    """Where a model's jobs run.

    Attributes
    ----------
    name : str
        What a run records: ``local``, ``ndif`` or ``dry-run``.
    device : str or None
        What a run records as its device; None: the type of the model's own.
    deadline : float or None
        Seconds that something about a job may take; None: as long as it takes.
    """

    name: ClassVar[str]
    device: ClassVar[str | None]
    deadline: float | None

    @classmethod
    def load(cls, asked: Loading) -> Model:
        """A model whose jobs run here."""
        ...

    def run(self, model: Model, requests: Sequence[Request]) -> Results:
        """Run requests as one job; one dict of CPU tensors a request.

        Raises
        ------
        BackendError
            If the model or the backend fails; the message holds what it said.
        """
        ...

    def stream(
        self,
        model: Model,
        indices: Sequence[int],
        asked: Callable[[int], Sequence[Request]],
        shared: Sequence[Request],
        ledger: JobLedger,
    ) -> Iterator[tuple[int, Results]]:
        """Results of the batches ``indices`` of a stage, as they come.

        Parameters
        ----------
        model : Model
        indices : sequence of int
        asked : callable
            What a batch asks.
        shared : sequence of Request
            Run once a job, before its batches, for what they hold.
        ledger : JobLedger
            Where jobs that outlive this process are noted.
        """
        ...

    def prepare(self, model: Model) -> None:
        """Do what must precede a model's first pass; nothing where the check of its map rides along.

        Raises
        ------
        ModelError
            If the residual stream does not add up on the architecture map.
        """

    def fits(self, model: Model, requests: Sequence[Request]) -> bool:
        """Whether requests are few enough for one job."""
        return True

    def learn_dtype(self, model: Model) -> None:
        """Find out what dtype the model runs in, where that is not known yet."""

    def reporting(
        self, notify: Callable[[str], None] | None, run: str
    ) -> AbstractContextManager[None]:
        """While a run of that name is computed, say how its jobs are."""
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """Facts about the place beside the model's identity, for people."""
        return {}


def backend_class(name: str) -> type[Backend]:
    """The class of a backend.

    Raises
    ------
    RequestError
        If there is none of that name.
    """
    if name not in BACKENDS:
        raise RequestError(f"unknown backend {name!r}; backends are {', '.join(BACKENDS)}.")
    module, _, found = BACKENDS[name].partition(":")
    return getattr(import_module(module), found)  # type: ignore[no-any-return]
