"""A job as bytes: which batches, what is sent, and what comes back."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import nnsight
import torch
import zstandard
from nnsight.tracing.backend import Backend

from refusal_nn.backends._functions import check_job
from refusal_nn.backends._process import serialise
from refusal_nn.backends._size import size_of
from refusal_nn.models import EMBEDDED, Model
from refusal_nn.shipped.job import digest, run_job, unpack
from refusal_nn.shipped.plans import mapped
from refusal_nn.tracing import Request, Results, check_requests, judge_check

if TYPE_CHECKING:
    from refusal_nn.backends._elsewhere import Elsewhere
    from refusal_nn.shipped.plans import JobAnswer, JobContent, PlainRequest


@dataclass(frozen=True)
class Job:
    """Batches that travel together, and what each asks."""

    batches: tuple[int, ...]
    requests: tuple[Sequence[Request], ...] = ()


@dataclass
class Batches:
    """The batches of a stage, for a model whose jobs run elsewhere.

    Parameters
    ----------
    model : Model
    requests : callable
        What a batch asks.
    shared : sequence of Request
        Run once a job, before its batches.
    """

    model: Model
    requests: Callable[[int], Sequence[Request]]
    shared: Sequence[Request] = ()

    @property
    def there(self) -> Elsewhere:
        """The backend that the jobs are for."""
        return cast("Elsewhere", self.model.backend)

    def jobs(self, batches: Sequence[int]) -> Iterator[Job]:
        """Batches in order, as many to a job as the limits allow, at least one."""
        total = base = size_of(self.model, self.shared)
        taken: list[int] = []
        parts: list[Sequence[Request]] = []
        for i in batches:
            part = self.requests(i)
            size = size_of(self.model, part)
            total += size
            if taken and not total.within(self.there.limits):
                yield Job(tuple(taken), tuple(parts))
                taken, parts, total = [], [], base + size
            taken.append(i)
            parts.append(part)
        if taken:
            yield Job(tuple(taken), tuple(parts))

    def job(self, batches: Sequence[int]) -> Job:
        """The job of just these batches."""
        return Job(tuple(batches), tuple(self.requests(i) for i in batches))

    def block(self, job: Job) -> bytes:
        """The bytes of a job, as nnsight sends a session.

        The first jobs of a process also carry the load-time check.

        Raises
        ------
        PreflightError
            If something in it cannot be serialised or read, or a function of the user's cannot travel.
        """
        model, copies = self.model, dict[int, torch.Tensor]()

        def plain(requests: Sequence[Request]) -> list[PlainRequest]:
            return [_compact(request.plain(), copies) for request in requests]

        content: JobContent = {
            "shared": plain(self.shared),
            "batches": [plain(part) for part in job.requests],
            "check": [] if model.verified else plain(check_requests(model)),
            "weigh": not model.verified and model.name in EMBEDDED,
        }
        network, backend = model.nnsight, _Bytes()
        with model.lock, network.session(backend=backend):
            answer = nnsight.save(run_job(network, content))  # noqa: F841 - the name it comes back by
        asked = [*self.shared, *(request for part in job.requests for request in part)]
        check_job(self.there, model, asked, backend.block)
        return backend.block

    def blob(self, job: Job) -> bytes:
        """The compressed bytes of a job; see :meth:`block`."""
        return compress(self.block(job))

    def results(self, answer: JobAnswer) -> list[Results]:
        """The results of each batch.

        Raises
        ------
        ModelError
            If the answer shows that the model there is not the one that is meant, or does not fit its
            map.
        """
        self.there.check_facts(self.model, answer["facts"])
        for results in unpack(answer["check"]):
            if results and not self.model.verified:
                judge_check(self.model, results[0]["error"])
        return unpack(answer["batches"])

    def answers(self, job: Job, content: bytes) -> list[Results]:
        """The results of each batch, from the bytes received; see :meth:`results`."""
        data = decompress(content, most=self.there.limits.most_received)
        return self.results(load(data)["answer"])


def compress(data: bytes) -> bytes:
    """As nnsight compresses a request."""
    return zstandard.ZstdCompressor(level=6).compress(data)


def decompress(data: bytes, *, most: int | None = None) -> bytes:
    """The inverse of :func:`compress`, and of what a server does to a result.

    Raises
    ------
    ValueError
        If it would be more than `most` bytes; the frame says so before anything is unpacked.
    """
    size = zstandard.frame_content_size(data)
    if most is not None and size > most:
        raise ValueError(f"it unpacks to {size} bytes, and at most {most} are taken")
    return zstandard.ZstdDecompressor().decompress(data)


def load(data: bytes) -> Any:
    """Tensors and plain values from the bytes of ``torch.save``; nothing in them can run.

    Raises
    ------
    Exception
        Of many types, if they are no such bytes, hold objects of another kind, or unpack to more than
        there is.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:  # torch stores its parts as they are
        if sum(part.file_size for part in file.infolist()) > len(data):
            raise ValueError("its parts unpack to more than it holds")
    with torch.serialization.safe_globals(
        [frozenset, complex]
    ):  # plain, and not on torch's own list
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _Bytes(Backend):  # type: ignore[misc]
    """nnsight backend that keeps the bytes of a block instead of running it."""

    def __init__(self) -> None:
        self.block = b""

    def __call__(self, tracer: Any) -> None:
        self.block = serialise(tracer)


def _compact(value: Any, copies: dict[int, torch.Tensor]) -> Any:
    """Plain data whose tensors own just their numbers: of a view the whole storage would travel."""

    def whole(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or (
            x.untyped_storage().nbytes() == x.nbytes and x.is_contiguous()
        ):
            return x
        # one copy for all mentions of a tensor, so that it travels once
        return copies.setdefault(id(x), x.detach().contiguous().clone())

    return mapped(value, whole)


def digest_of(model: Model) -> str:
    """Digest of an embedded model's weights in the server's dtype, read one by one."""
    from safetensors import safe_open

    files = sorted(Path(model.source).glob("*.safetensors"))
    where = {}
    for file in files:
        with safe_open(file, framework="pt") as found:
            where.update(dict.fromkeys(found.keys(), file))
    names = sorted(name for name, _ in model.module.named_parameters())

    def read(name: str) -> torch.Tensor:
        with safe_open(where[name], framework="pt") as found:
            tensor: torch.Tensor = found.get_tensor(name)
        return tensor.to(model.dtype) if tensor.is_floating_point() else tensor

    return digest([(name, read(name)) for name in names])
