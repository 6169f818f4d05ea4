"""Backend ``ndif``: the jobs of one model, on a server that has it deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from refusal_nn.backends._elsewhere import Elsewhere
from refusal_nn.backends._payload import Batches, digest_of
from refusal_nn.backends._process import Preflight
from refusal_nn.backends._size import Limits
from refusal_nn.backends.ndif._deployments import (
    check_other_deployments,
    find_deployment,
    key_at,
    state_of,
)
from refusal_nn.backends.ndif._queue import Jobs
from refusal_nn.backends.ndif._service import Service
from refusal_nn.backends.ndif._shape import hub_name, shape_of
from refusal_nn.errors import Detached, ModelError, RequestError
from refusal_nn.models import DTYPES, EMBEDDED, Loading, Model, build_architecture
from refusal_nn.models._catalogue import ON_SERVERS
from refusal_nn.models._hashes import weights_hash
from refusal_nn.store import JobLedger

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Facts


@dataclass(eq=False)
class Ndif(Elsewhere):
    """Where a model's jobs go: to an NDIF server.

    Attributes
    ----------
    service : Service
    key : str
        What the server knows the model by: class, repository, revision and task.
    repo : str
        Repository on the hub.
    limits : Limits
    pinned : str or None
        Commit that the server must run, where the client knows it.
    revision : str or None
        As it was asked for.
    by_commit : bool
        The commit was asked for and the server has the model under another name; what it runs must be
        told and be that commit.
    dtype_known : bool
        The dtype was asked for or the server has told it; else a job has to be run to learn it.
    detach : bool
        The stages of a run submit their jobs and raise :class:`~refusal_nn.errors.Detached` instead of
        waiting.
    notify : callable or None
        Given one line about the jobs under way whenever it changes.
    retried : int
        Requests that had to be repeated so far.
    """

    service: Service
    key: str
    repo: str
    limits: Limits = field(default_factory=Limits)
    pinned: str | None = None
    revision: str | None = None
    by_commit: bool = False
    dtype_known: bool = True
    detach: bool = False
    notify: Callable[[str], None] | None = None
    retried: int = 0
    name: ClassVar[str] = "ndif"
    device: ClassVar[str] = "server"

    @property
    def deadline(self) -> float:  # type: ignore[override]
        """Seconds without news of any job after which waiting ends."""
        return self.limits.deadline

    @classmethod
    def load(cls, asked: Loading) -> Model:
        """A model's tokenizer and configuration only, mapped on the meta device.

        Raises
        ------
        RequestError
            If the address is wrong, or the server runs the model otherwise than asked.
        ModelError
            If the model is not one of the hub, or cannot be mapped.
        UnavailableError
            If no server answers.
        """
        name, source, reading = asked.name, asked.source, asked.reading
        if asked.device is not None:
            raise RequestError("the server chooses the device; leave --device out.")
        if Path(source).is_dir() and name not in EMBEDDED:
            raise ModelError(
                f"model {name!r} is a folder here, which no server has; with --backend ndif give a hub "
                f"id such as org/name, or an embedded name ({', '.join(EMBEDDED)})."
            )
        limits = asked.elsewhere.get("limits") or Limits()
        service = Service.connect(
            asked.elsewhere.get("host"),
            deadline=limits.deadline,
            plain_http=asked.elsewhere.get("plain_http", False),
        )
        deployments = service.status()
        nn_model, tokenizer, commit = shape_of(asked)
        repo = ON_SERVERS[name] if name in EMBEDDED else hub_name(source)
        revision = reading["revision"]
        key, by_commit = key_at(
            deployments, repo, revision, commit, trust_remote_code=reading["trust_remote_code"]
        )
        found = find_deployment(deployments, key)
        if found is None:
            check_other_deployments(deployments, repo, revision)
        module = nn_model._module
        runs_in = DTYPES.get(str((found or {}).get("dtype")))
        if asked.dtype is not None and runs_in is not None and asked.dtype != runs_in:
            raise RequestError(
                f"the server runs {repo!r} in {_short(runs_in)}, not in {_short(asked.dtype)}; leave "
                "--dtype out, or have it deployed in that dtype."
            )
        dtype = runs_in or asked.dtype
        model = Model(
            name=name,
            source=source,
            nnsight=nn_model,
            tokenizer=tokenizer,
            arch=build_architecture(module),
            dtype=dtype or next(module.parameters()).dtype,
            device=torch.device("cpu"),
            backend=cls(
                service,
                key,
                repo,
                limits,
                pinned=commit,
                revision=revision,
                by_commit=by_commit,
                dtype_known=dtype is not None,
                detach=asked.elsewhere.get("detach", False),
            ),
            revision=commit or revision,
            chat_template=asked.chat_template,
        )
        module.requires_grad_(False)
        module.eval()
        model.weights_hash = weights_hash(source, model.revision)
        return model

    def collect(
        self, work: Batches, indices: Sequence[int], ledger: JobLedger, *, wait: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """The answers of batches, as they come; where jobs are left alone, those that are there."""
        return Jobs(work.model, work, ledger).answers(indices, detach=self.detach and not wait)

    def learn_dtype(self, model: Model) -> None:
        """Have a model deployed that is not yet, by an empty job, to know what dtype it runs in there.

        The dtype is part of what a run is known by, so it is needed before the first stage.
        """
        if not self.dtype_known:
            self.run(model, [])

    @contextmanager
    def reporting(self, notify: Callable[[str], None] | None, run: str) -> Iterator[None]:
        """Jobs are reported; where they are left alone, the message says for which run."""
        before, self.notify = self.notify, notify
        try:
            yield
        except Detached as left:
            raise Detached(left.host, left.jobs, run) from None
        finally:
            self.notify = before

    def describe(self) -> dict[str, Any]:
        """Host, repository and state, for people."""
        found = find_deployment(self.service.status(), self.key)
        state = "not deployed" if found is None else state_of(found)
        return {"host": self.service.host, "repository": self.repo, "deployment": state}

    def preflight(self, model: Model, block: bytes) -> None:
        """Read a job where this package is missing, as the server will."""
        Preflight(model).check(block)

    def lacking(self, own: set[str], named: set[str]) -> set[str]:
        """Of modules that do not travel, those that the server does not have."""
        if not own | named:
            return set()
        there = {name.lower() for name in self.service.environment()}
        packages = metadata.packages_distributions()

        def installed(module: str) -> bool:
            top = module.split(".")[0]
            return any(name.lower() in there for name in (top, *packages.get(top, ())))

        return {name for name in own | named if not installed(name)}

    def check_facts(self, model: Model, facts: Facts) -> None:
        """Compare what the server tells of its model with what is known here; once a process.

        Raises
        ------
        ModelError
            If it is not the model that is meant.
        """
        if not self.dtype_known:  # it was not deployed when the model was loaded
            model.dtype, self.dtype_known = DTYPES.get(facts["dtype"], model.dtype), True
        mine = _short(model.dtype)
        if facts["dtype"] != mine:
            raise ModelError(
                f"the server runs {self.repo!r} in {facts['dtype']}, but {mine} was expected; pass "
                f"--dtype {facts['dtype']}, or have it deployed in {mine}."
            )
        if self.by_commit and not facts["commit"]:
            raise ModelError(
                f"the server does not tell which commit of {self.repo!r} it runs, so it may not be "
                f"{str(self.pinned)[:12]}; leave --revision out to use what it has, or have that commit "
                "deployed."
            )
        if self.pinned and facts["commit"] and facts["commit"] != self.pinned:
            meant = "was asked for" if self.by_commit else "is what the hub has now"
            raise ModelError(
                f"the server runs commit {facts['commit'][:12]} of {self.repo!r}, but "
                f"{self.pinned[:12]} {meant}; pass --revision {facts['commit']}, or have the model "
                "deployed again."
            )
        if facts["weights"] and not model.verified and facts["weights"] != digest_of(model):
            raise ModelError(
                f"the weights of {self.repo!r} on the server are not those of the embedded "
                f"{model.name!r}; pass --model {self.repo} to use the server's."
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
