"""What one batch asks of a model, and handles on what it asked.

A handle stands for a request from the moment it is made: what the request *holds* where it is
computed can be used by later ones, and what it returns is looked up by it::

    plain = work.forward(batch, [Capture("z", "z", keep=True)])
    patched = work.forward(batch, [metric], [Edit(3, "z", "set", {"value": plain.held("z", layer=3)})])
    ...
    results[patched]["metric"]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refusal_nn.tracing._batch import forward_request, generate_request
from refusal_nn.tracing._plan import Ref

if TYPE_CHECKING:
    import torch

    from refusal_nn.interventions import Edit, Intervention
    from refusal_nn.models import Model
    from refusal_nn.tracing._batch import Batch
    from refusal_nn.tracing._plan import Capture, Start
    from refusal_nn.tracing._request import Request


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


@dataclass
class Work:
    """The requests of one batch, in the order they were asked.

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

    def forward(
        self,
        batch: Batch,
        captures: Sequence[Capture],
        interventions: Sequence[Intervention | Edit] = (),
        *,
        start: Start | None = None,
        gradient: bool = False,
        after: tuple[str, Mapping[str, Any]] | None = None,
    ) -> Handle:
        """Ask for a forward pass; see :func:`forward_request`."""
        return self._add(
            forward_request(
                self.model,
                batch,
                captures,
                interventions,
                start=start,
                gradient=gradient,
                after=after,
            )
        )

    def generate(
        self,
        batch: Batch,
        interventions: Sequence[Intervention | Edit] = (),
        *,
        max_new_tokens: int,
    ) -> Handle:
        """Ask for greedy completions; see :func:`generate_request`. The result is ``ids``."""
        return self._add(
            generate_request(self.model, batch, interventions, max_new_tokens=max_new_tokens)
        )

    def _add(self, request: Request) -> Handle:
        self.requests.append(request)
        return Handle(len(self.requests) - 1, self.shared)


@dataclass(frozen=True)
class Answers:
    """What the requests of one batch returned, by handle; CPU tensors by name of capture."""

    results: Sequence[Mapping[str, torch.Tensor]]

    def __getitem__(self, handle: Handle) -> Mapping[str, torch.Tensor]:
        return self.results[handle.number]

    def each(self, handles: Iterable[Handle], name: str) -> Iterator[torch.Tensor]:
        """One named result of several requests, in order."""
        return (self[handle][name] for handle in handles)
