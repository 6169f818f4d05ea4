"""What a server has deployed, and by what name it knows a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from refusal_nn.errors import ModelError
from refusal_nn.store import versions

TASK = "text-generation"


def model_key(repo: str, revision: str | None, *, trust_remote_code: bool = False) -> str:
    """What nnsight and a server call a text-generation model of the hub."""
    from nnsight.modeling.transformers import TransformersModel
    from nnsight.util import to_import_path

    facts: dict[str, Any] = {"repo_id": repo, "revision": revision}
    if trust_remote_code:
        facts["trust_remote_code"] = True
    return f"{to_import_path(TransformersModel)}:{json.dumps({**facts, 'task': TASK})}"


def key_at(
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


def state_of(deployment: Mapping[str, Any]) -> str:
    level = {"HOT": "on its device", "WARM": "parked in memory"}[deployment["deployment_level"]]
    state = str(deployment.get("application_state", "UNKNOWN")).lower()
    return f"{state}, {level}, {deployment.get('dtype', 'dtype unknown')}"


def check_other_deployments(
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
