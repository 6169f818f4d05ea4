"""A trace of one's own, run on a server by the same rules as our jobs."""

from __future__ import annotations

import pickle  # of torch's error alone: nothing is unpickled here
import re
from typing import Any

from nnsight.tracing.backend import Backend
from nnsight.tracing.tracer import save
from nnsight.tracing.util import push

from refusal_nn.backends._payload import Batches, Job, decompress, load
from refusal_nn.backends._process import Preflight, serialise
from refusal_nn.backends.ndif._backend import Ndif
from refusal_nn.errors import BackendError, RequestError
from refusal_nn.models import Model
from refusal_nn.store import JobLedger


class Remote(Backend):  # type: ignore[misc]
    """nnsight backend that runs a trace of your own on the model's server.

    Before anything is sent the block is read in a process without this package, as the server will
    read it, so what cannot travel fails here. Functions of a script travel with it; those of an
    installed package only after ``nnsight.register("package")``. There is one deadline for the whole
    wait, requests that fail for now are repeated, and errors are sentences with the place in your
    file. What comes back is tensors, numbers, text, and lists or dicts of them: an object of another
    kind is not loaded, as it could run code here.

    Parameters
    ----------
    model : Model
        Loaded with ``backend="ndif"``.
    preflight : bool
        Read the block here first, in a process that takes seconds to start and serves every model of
        one source.

    Raises
    ------
    PreflightError
        If the block refers to what a server does not have, or cannot be serialised.
    BackendError
        If the server fails, or nothing is heard of the job within the deadline.

    Examples
    --------
    ::

        model = rn.load_model("tiny-refuser", backend="ndif")
        with model.nnsight.trace("how are you", backend=rn.backends.Remote(model)):
            norm = nnsight.save(model.nnsight.model.layers[3].output.norm(dim=-1))
    """

    def __init__(self, model: Model, *, preflight: bool = True) -> None:
        if not isinstance(model.backend, Ndif):
            raise RequestError(
                f"model {model.name!r} runs on backend {model.backend.name}; load it with "
                "backend='ndif' to trace it on a server."
            )
        self.model, self.there = model, model.backend
        self.preflight = Preflight(model) if preflight else None

    def __call__(self, tracer: Any) -> None:
        """Check, send, wait, and bring back what the block saved."""
        blob = serialise(tracer)
        if self.preflight is not None:
            self.preflight.check(blob)
        ((_, answer),) = self.there.collect(Block(self.model, blob), [0], JobLedger(), wait=True)
        try:
            saved = load(answer)
            values = list(saved.values())
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise BackendError(
                f"what the server at {self.there.service.host} sent back is not loaded, as it holds "
                f"more than tensors and plain values{f' ({named[1]})' if named else ''}, which could "
                "run code here; save tensors, numbers, text, and lists or dicts of them."
            ) from error
        except Exception as error:  # bytes that are no result may break anything that reads them
            raise BackendError(
                f"what the server at {self.there.service.host} sent back cannot be read "
                f"({type(error).__name__}: {error}); save tensors and plain values, and compare "
                "versions with `refusal-nn remote status`."
            ) from error
        for value in values:
            save(value)
        push(tracer.info.frame, saved)


class Block(Batches):
    """One serialised block that is somebody else's; its answer is the bytes that come back."""

    def __init__(self, model: Model, sent: bytes) -> None:
        super().__init__(model, lambda _: ())
        self.sent = sent

    def block(self, job: Job) -> bytes:
        """The block as it was given."""
        return self.sent

    def answers(self, job: Job, content: bytes) -> list[Any]:
        """The bytes of what it saved."""
        return [decompress(content, most=self.there.limits.most_received)]
