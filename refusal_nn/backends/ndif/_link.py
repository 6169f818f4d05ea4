"""A model that lives on an NDIF server: its tokenizer and shape are here, its weights never are."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from refusal_nn.backends.ndif._service import Service
from refusal_nn.errors import ModelError, RequestError, UnavailableError
from refusal_nn.models._architecture import build_architecture
from refusal_nn.models._catalogue import EMBEDDED, ON_SERVERS
from refusal_nn.models._commit import commit_of
from refusal_nn.models._hashes import weights_hash
from refusal_nn.models._model import (
    DTYPES,
    Model,
    not_loaded,
    quiet,
    read_tokenizer,
)
from refusal_nn.store import versions

TASK = "text-generation"


@dataclass(frozen=True)
class Limits:
    """How work is cut into jobs, and how long one is waited for.

    Parameters
    ----------
    tokens : int
        Token positions a job computes, prompts and generated tokens of all its rows: a bound on the
        time a job takes. A batch above it is a job of its own.
    sent_bytes : int
        Uncompressed tensors of a job's requests, in bytes.
    received_bytes : int
        Estimated size of a job's results, in bytes.
    in_flight : int
        Jobs submitted and not collected at one time.
    deadline : float
        Seconds without news of any job (a change of state or of its place in the queue, a result)
        after which waiting ends. A question that fails for now is repeated for so long.
    retries : int
        Times a job is sent again after it failed for a reason that may pass.
    backoff : float
        Seconds before the first repetition; each further one waits twice as long, up to 30 s.
    poll : float
        Seconds between two questions about jobs at first; they grow to 20 times that.
    """

    tokens: int = 400_000
    sent_bytes: int = 64 << 20
    received_bytes: int = 256 << 20
    in_flight: int = 3
    deadline: float = 1800.0
    retries: int = 4
    backoff: float = 0.5
    poll: float = 0.1

    def __post_init__(self) -> None:
        above = ("tokens", "sent_bytes", "received_bytes", "in_flight", "deadline", "poll")
        for name in (*above, "retries", "backoff"):
            value = getattr(self, name)
            if not math.isfinite(value):  # no comparison below is true of a nan
                raise RequestError(f"{name} must be a finite number, got {value}.")
            if name in above and value <= 0:
                raise RequestError(f"{name} must be above 0, got {value}.")
            if value < 0:
                raise RequestError(f"{name} must be 0 or more, got {value}.")


@dataclass(eq=False)
class Link:
    """Where a model's jobs go.

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
    by_commit: bool = False
    dtype_known: bool = True
    detach: bool = False
    notify: Callable[[str], None] | None = None
    retried: int = 0

    def deployment(self) -> dict[str, Any] | None:
        """What the server says of the model's deployment; None where there is none."""
        return find_deployment(self.service.status(), self.key)

    def describe(self) -> dict[str, Any]:
        """Host, repository and state, for people."""
        found = self.deployment()
        state = "not deployed" if found is None else _state(found)
        return {"host": self.service.host, "repository": self.repo, "deployment": state}


def load_remote(
    name: str,
    source: str,
    *,
    host: str | None,
    dtype: torch.dtype | None,
    revision: str | None,
    chat_template: str | None,
    trust_remote_code: bool,
    attn_implementation: str | None,
    limits: Limits | None,
    detach: bool,
) -> Model:
    """A model for backend ``ndif``: its tokenizer and configuration only, mapped on the meta device.

    Parameters
    ----------
    name, source : str
        As given, and the embedded folder or hub id it means.
    host : str, optional
    dtype : torch.dtype, optional
        What the server must run the model in; default whatever it does.
    revision, chat_template, trust_remote_code, attn_implementation
        As in :func:`refusal_nn.models.load_model`.
    limits : Limits, optional
    detach : bool
        Runs don't wait for their jobs.

    Raises
    ------
    RequestError
        If the address is wrong, or the server runs the model otherwise than asked.
    ModelError
        If the model is not one of the hub, or cannot be mapped.
    UnavailableError
        If no server answers.
    """
    if Path(source).is_dir() and name not in EMBEDDED:
        raise ModelError(
            f"model {name!r} is a folder here, which no server has; with --backend ndif give a hub id "
            f"such as org/name, or an embedded name ({', '.join(EMBEDDED)})."
        )
    limits = limits or Limits()
    service = Service.connect(host, deadline=limits.deadline)
    deployments = service.status()
    nn_model, tokenizer, commit = _shape(
        source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        dtype=dtype,
    )
    repo = ON_SERVERS[name] if name in EMBEDDED else _hub_name(source)
    key, by_commit = _key_at(
        deployments, repo, revision, commit, trust_remote_code=trust_remote_code
    )
    found = find_deployment(deployments, key)
    if found is None:
        _check_other_deployments(deployments, repo, key, revision)
    module = nn_model._module
    runs_in = DTYPES.get(str((found or {}).get("dtype")))
    if dtype is not None and runs_in is not None and dtype != runs_in:
        raise RequestError(
            f"the server runs {repo!r} in {_short(runs_in)}, not in {_short(dtype)}; leave --dtype "
            "out, or have it deployed in that dtype."
        )
    model = Model(
        name=name,
        source=source,
        nnsight=nn_model,
        tokenizer=tokenizer,
        arch=build_architecture(module),
        dtype=runs_in or dtype or next(module.parameters()).dtype,
        device=torch.device("cpu"),
        backend="ndif",
        revision=commit or revision,
        chat_template=chat_template,
        remote=Link(
            service,
            key,
            repo,
            limits,
            pinned=commit,
            by_commit=by_commit,
            dtype_known=(runs_in or dtype) is not None,
            detach=detach,
        ),
    )
    module.requires_grad_(False)
    module.eval()
    model.weights_hash = weights_hash(source, model.revision)
    return model


def model_key(repo: str, revision: str | None, *, trust_remote_code: bool = False) -> str:
    """What nnsight and a server call a text-generation model of the hub."""
    from nnsight.modeling.transformers import TransformersModel
    from nnsight.util import to_import_path

    facts: dict[str, Any] = {"repo_id": repo, "revision": revision}
    if trust_remote_code:
        facts["trust_remote_code"] = True
    return f"{to_import_path(TransformersModel)}:{json.dumps({**facts, 'task': TASK})}"


def _key_at(
    deployments: Mapping[str, Mapping[str, Any]],
    repo: str,
    revision: str | None,
    commit: str | None,
    *,
    trust_remote_code: bool,
) -> tuple[str, bool]:
    """The key that a server has a model under, and whether that was chosen by its commit.

    To a server no revision and ``main`` are two models, and so are a branch and the commit it is at;
    asking for the other name would deploy a second copy. A commit is looked for under any name: the
    first job tells what it is.
    """

    def key(name: str | None) -> str:
        return model_key(repo, name, trust_remote_code=trust_remote_code)

    def there(name: str | None) -> bool:
        return find_deployment(deployments, key(name)) is not None

    names = (revision, None, "main") if revision in (None, "main") else (revision,)
    for name in names:
        if there(name):
            return key(name), False
    if commit and revision and commit == revision.lower():
        others = {d.get("revision") for d in deployments.values() if d.get("repo_id") == repo}
        for name in (None, "main", *sorted(str(o) for o in others - {None, "main"})):
            if there(name):
                return key(name), True
    return key(revision), False


def find_deployment(
    deployments: Mapping[str, Mapping[str, Any]], key: str
) -> dict[str, Any] | None:
    """The deployment of a model key, of several replicas the readiest."""
    rank = {"HOT": 0, "WARM": 1}
    replicas = [
        dict(d)
        for d in deployments.values()
        if d.get("model_key") == key and d.get("deployment_level") in rank
    ]
    replicas.sort(
        key=lambda d: (rank[d["deployment_level"]], d.get("application_state") != "RUNNING")
    )
    return replicas[0] if replicas else None


def deployed(deployments: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a server has deployed, one entry a model.

    Returns
    -------
    list of dict
        ``repository``, ``revision``, ``task``, ``dtype``, ``level`` (``hot``: on its device, ``warm``:
        parked in memory), ``state`` and the number of ``replicas``.
    """
    keys = {
        str(d.get("model_key")): None
        for d in deployments.values()
        if d.get("deployment_level") in ("HOT", "WARM")
    }
    found = []
    for key in keys:
        best = find_deployment(deployments, key) or {}
        found.append(
            {
                "repository": best.get("repo_id"),
                "revision": best.get("revision") or "main",
                "task": best.get("task"),
                "dtype": best.get("dtype"),
                "level": str(best.get("deployment_level")).lower(),
                "state": str(best.get("application_state")).lower(),
                "replicas": sum(d.get("model_key") == key for d in deployments.values()),
            }
        )
    return found


def compare_versions(server: Mapping[str, str]) -> list[dict[str, str | None]]:
    """Versions of what decides results, here and on a server.

    Parameters
    ----------
    server : mapping
        From :meth:`Service.environment`.

    Returns
    -------
    list of dict
        ``package``, ``here``, ``server`` (None where it is not installed).
    """
    mine = versions()
    names = ("python", "nnsight", "torch", "transformers", "numpy")
    return [{"package": name, "here": mine.get(name), "server": server.get(name)} for name in names]


def _state(deployment: Mapping[str, Any]) -> str:
    level = {"HOT": "on its device", "WARM": "parked in memory"}[deployment["deployment_level"]]
    state = str(deployment.get("application_state", "UNKNOWN")).lower()
    return f"{state}, {level}, {deployment.get('dtype', 'dtype unknown')}"


def _check_other_deployments(
    deployments: Mapping[str, Mapping[str, Any]], repo: str, key: str, revision: str | None
) -> None:
    """Refuse to ask for a second copy of a model that is deployed under another revision."""
    others = {
        str(d.get("revision") or "main")
        for d in deployments.values()
        if d.get("repo_id") == repo
        and d.get("task") == TASK
        and d.get("deployment_level") in ("HOT", "WARM")
        and d.get("model_key") != key
    } - {revision or "main"}
    if others:
        there = ", ".join(sorted(others))
        raise ModelError(
            f"the server has {repo!r} deployed at revision {there}, not {revision or 'main'}; pass "
            f"--revision {sorted(others)[0]}"
            f"{' or leave --revision out' if others == {'main'} else ''}, or have its operator deploy "
            "yours."
        )


def _shape(
    source: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    attn_implementation: str | None,
    dtype: torch.dtype | None,
) -> tuple[Any, Any, str | None]:
    """The nnsight model on the meta device, the tokenizer, and the commit both are from."""
    from nnsight.modeling.transformers import TransformersModel
    from transformers import GenerationConfig

    options = {"attn_implementation": attn_implementation, "dtype": dtype}
    chosen: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    if trust_remote_code:
        chosen["trust_remote_code"] = True
    with not_loaded(source), quiet():
        tokenizer = read_tokenizer(source, revision, trust_remote_code)
        nn_model = TransformersModel(
            source, task=TASK, tokenizer=tokenizer, revision=revision, **chosen
        )
        module = nn_model._module
        # not every model has this file, and a model built from its configuration alone does not read
        # it; it may name further tokens that end a completion
        with contextlib.suppress(OSError):
            module.generation_config = GenerationConfig.from_pretrained(source, revision=revision)
    return nn_model, tokenizer, commit_of(source, revision)


def _hub_name(source: str) -> str:
    """The hub's own spelling of a repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(HfApi().model_info(source).id)
    except OfflineModeIsEnabled as error:
        raise ModelError(
            f"the hub cannot be asked about {source!r} in offline mode; unset HF_HUB_OFFLINE."
        ) from error
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"model {source!r} is not found on the hub: {reason}; check the name and the network."
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise UnavailableError(
            f"the hub cannot be asked about {source!r} ({type(error).__name__}); check the network and "
            "HF_ENDPOINT."
        ) from error


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
