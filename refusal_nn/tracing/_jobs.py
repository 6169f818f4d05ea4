"""What one batch asks of a model, handles on what it asked, and the batches of a stage.

A handle stands for a request from the moment it is made: what the request *holds* where it is
computed can be used by later ones, and what it returns is looked up by it::

    plain = work.forward(batch, [Capture("z", "z", keep=True)])
    patched = work.forward(batch, [metric], [Edit(3, "z", "set", {"value": plain.held("z", layer=3)})])
    ...
    results[patched]["metric"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from refusal_nn.models import Model
from refusal_nn.tracing._batch import Request, forward_request, generate_request
from refusal_nn.tracing._plan import Ref

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from refusal_nn.store import JobLedger

    Collect = Callable[["Answers"], xr.Dataset]


@dataclass(frozen=True)
class Handle:
    """A request that was asked.

    Attributes
    ----------
    number : int
        Its place in the work.
    shared : bool
        Whether it is run once a job, for all its batches.
    """

    number: int
    shared: bool = False

    def held(
        self, name: str, *, layer: int | None = None, rows: Sequence[int] | None = None
    ) -> Ref:
        """A result that the request holds (``Capture(keep=True)``), for later requests.

        Parameters
        ----------
        name : str
            Name of the capture.
        layer : int, optional
            Index along the first axis, of a capture stacked over layers.
        rows : sequence of int, optional
            Indices along the row axis that is then first; a row may be named several times.
        """
        return Ref(self.number, name, self.shared, layer, rows)


P = ParamSpec("P")


def _asks(
    request: Callable[Concatenate[Model, P], Request],
) -> Callable[Concatenate[Work, P], Handle]:
    """The method that asks for a request, with the arguments of the function that makes it."""

    @wraps(request)
    def ask(self: Work, *args: P.args, **options: P.kwargs) -> Handle:
        self.requests.append(request(self.model, *args, **options))
        return Handle(len(self.requests) - 1, self.shared)

    return ask


@dataclass
class Work:
    """The requests of one batch, in the order they were asked.

    ``forward`` asks for a pass, see :func:`forward_request`, and ``generate`` for greedy completions,
    see :func:`generate_request`, whose result is ``ids``. Both leave out the model.

    Parameters
    ----------
    model : Model
    shared : bool
        These requests are run once a job, before its batches, for what they hold.

    Attributes
    ----------
    requests : list of Request
    """

    model: Model
    shared: bool = False
    requests: list[Request] = field(default_factory=list)

    forward = _asks(forward_request)
    generate = _asks(generate_request)


@dataclass(frozen=True)
class Answers:
    """What the requests of one batch returned, by handle; CPU tensors by name of capture."""

    results: Sequence[Mapping[str, torch.Tensor]]

    def __getitem__(self, handle: Handle) -> Mapping[str, torch.Tensor]:
        return self.results[handle.number]

    def each(self, handles: Iterable[Handle], name: str) -> Iterator[torch.Tensor]:
        """One named result of several requests, in order."""
        return (self[handle][name] for handle in handles)


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
