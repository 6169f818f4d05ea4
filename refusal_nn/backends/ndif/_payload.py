"""The client's side of a job: which batches, its bytes, and its answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nnsight
import torch
import zstandard
from nnsight.tracing.backend import Backend

from refusal_nn.backends._dry_run import serialise
from refusal_nn.backends._functions import check_functions
from refusal_nn.backends.ndif._size import size_of
from refusal_nn.errors import ModelError
from refusal_nn.models import DTYPES, EMBEDDED, Model
from refusal_nn.shipped.job import digest, run_job, unpack
from refusal_nn.tracing._check import check_requests, judge_check
from refusal_nn.tracing._request import Request, Results


@dataclass(frozen=True)
class Job:
    """Batches that travel together, and what each asks."""

    batches: tuple[int, ...]
    requests: tuple[Sequence[Request], ...] = ()


class Work(Protocol):
    """What jobs are made of and what their answers are made into."""

    def jobs(self, batches: Sequence[int]) -> Iterator[Job]:
        """Cut batches into jobs."""
        ...

    def job(self, batches: Sequence[int]) -> Job:
        """The job of just these batches."""
        ...

    def blob(self, job: Job) -> bytes:
        """The bytes to send."""
        ...

    def answers(self, job: Job, content: bytes) -> list[Any]:
        """One answer a batch, from the bytes received."""
        ...


@dataclass(frozen=True)
class Passes:
    """The batches of a stage.

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

    def jobs(self, batches: Sequence[int]) -> Iterator[Job]:
        """Batches in order, as many to a job as the limits allow, at least one."""
        assert self.model.remote is not None
        limits = self.model.remote.limits
        total = base = size_of(self.model, self.shared)
        taken: list[int] = []
        parts: list[Sequence[Request]] = []
        for i in batches:
            part = self.requests(i)
            size = size_of(self.model, part)
            total += size
            if taken and (
                total.tokens > limits.tokens
                or total.sent > limits.sent_bytes
                or total.received > limits.received_bytes
            ):
                yield Job(tuple(taken), tuple(parts))
                taken, parts, total = [], [], base + size
            taken.append(i)
            parts.append(part)
        if taken:
            yield Job(tuple(taken), tuple(parts))

    def job(self, batches: Sequence[int]) -> Job:
        """The job of just these batches."""
        return Job(tuple(batches), tuple(self.requests(i) for i in batches))

    def blob(self, job: Job) -> bytes:
        """The compressed bytes of a job, as nnsight sends a session.

        The first jobs of a process also carry the load-time check.

        Raises
        ------
        PreflightError
            If something in it cannot be serialised, or a function of the user's cannot travel.
        """
        model, memo = self.model, dict[int, torch.Tensor]()
        plain = {
            "shared": [_plain(r, memo) for r in self.shared],
            "batches": [[_plain(r, memo) for r in part] for part in job.requests],
            "check": [] if model.verified else [_plain(r, memo) for r in check_requests(model)],
            "weigh": not model.verified and model.name in EMBEDDED,
        }
        network, backend = model.nnsight, _Bytes()
        with model.lock, network.session(backend=backend):
            answer = nnsight.save(run_job(network, plain))  # noqa: F841 - the name it comes back by
        asked = [*self.shared, *(request for part in job.requests for request in part)]
        check_functions(model, asked, backend.blob)
        return compress(backend.blob)

    def answers(self, job: Job, content: bytes) -> list[Results]:
        """The results of each batch.

        Raises
        ------
        ModelError
            If the answer shows that the server's model is not the one the client means.
        """
        found = torch.load(io.BytesIO(decompress(content)), map_location="cpu", weights_only=True)
        _check_facts(self.model, found["answer"])
        return unpack(found["answer"]["batches"])


@dataclass(frozen=True)
class Block:
    """One serialised block that is somebody else's; its answer is the bytes that come back."""

    sent: bytes

    def jobs(self, batches: Sequence[int]) -> Iterator[Job]:
        """The one job."""
        yield self.job(batches)

    def job(self, batches: Sequence[int]) -> Job:
        """The one job."""
        return Job(tuple(batches))

    def blob(self, job: Job) -> bytes:
        """The compressed block."""
        return compress(self.sent)

    def answers(self, job: Job, content: bytes) -> list[bytes]:
        """The bytes of what it saved."""
        return [decompress(content)]


def compress(data: bytes) -> bytes:
    """As nnsight compresses a request."""
    return zstandard.ZstdCompressor(level=6).compress(data)


def decompress(data: bytes) -> bytes:
    """The inverse of :func:`compress`, and of what a server does to a result."""
    return zstandard.ZstdDecompressor().decompress(data)


class _Bytes(Backend):  # type: ignore[misc]
    """nnsight backend that keeps the bytes of a block instead of running it."""

    def __init__(self) -> None:
        self.blob = b""

    def __call__(self, tracer: Any) -> None:
        self.blob = serialise(tracer)


def _plain(request: Request, memo: dict[int, torch.Tensor]) -> dict[str, Any]:
    return {
        "inputs": {name: _whole(x, memo) for name, x in request.inputs.items()},
        "plan": _compact(request.plan, memo),
        "options": dict(request.options),
        "generate": request.generate,
    }


def _compact(value: Any, memo: dict[int, torch.Tensor]) -> Any:
    """Plain data whose tensors own just their numbers: of a view the whole storage would travel."""
    if isinstance(value, torch.Tensor):
        return _whole(value, memo)
    if isinstance(value, Mapping):
        return {k: _compact(v, memo) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_compact(v, memo) for v in value)
    return value


def _whole(x: torch.Tensor, memo: dict[int, torch.Tensor]) -> torch.Tensor:
    if x.untyped_storage().nbytes() == x.nbytes and x.is_contiguous():
        return x
    # one copy for all mentions of a tensor, so that it travels once
    return memo.setdefault(id(x), x.detach().contiguous().clone())


def _check_facts(model: Model, answer: Mapping[str, Any]) -> None:
    """Compare what the server tells of its model with what is known here; once a process."""
    facts = answer["facts"]
    remote = model.remote
    assert remote is not None
    if not remote.dtype_known:  # it was not deployed when the model was loaded
        model.dtype, remote.dtype_known = DTYPES.get(facts["dtype"], model.dtype), True
    mine = str(model.dtype).removeprefix("torch.")
    if facts["dtype"] != mine:
        raise ModelError(
            f"the server runs {remote.repo!r} in {facts['dtype']}, but {mine} was expected; pass "
            f"--dtype {facts['dtype']}, or have it deployed in {mine}."
        )
    if remote.by_commit and not facts["commit"]:
        raise ModelError(
            f"the server does not tell which commit of {remote.repo!r} it runs, so it may not be "
            f"{str(remote.pinned)[:12]}; leave --revision out to use what it has, or have that commit "
            "deployed."
        )
    if remote.pinned and facts["commit"] and facts["commit"] != remote.pinned:
        meant = "was asked for" if remote.by_commit else "is what the hub has now"
        raise ModelError(
            f"the server runs commit {facts['commit'][:12]} of {remote.repo!r}, but "
            f"{remote.pinned[:12]} {meant}; pass --revision {facts['commit']}, or have the model "
            "deployed again."
        )
    if facts["weights"] and not model.verified and facts["weights"] != _own_digest(model):
        raise ModelError(
            f"the weights of {remote.repo!r} on the server are not those of the embedded "
            f"{model.name!r}; pass --model {remote.repo} to use the server's."
        )
    for results in unpack(answer["check"]):
        if results and not model.verified:
            judge_check(model, results[0]["error"])
            model.verified = True


def _own_digest(model: Model) -> str:
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
