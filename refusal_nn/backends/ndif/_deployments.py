"""What a server has deployed, and by what name it knows a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from refusal_nn.errors import ModelError
from refusal_nn.store import versions

TASK = "text-generation"
LEVELS = {"HOT": "on its device", "WARM": "parked in memory"}
"""Where a model can be that is deployed, the readiest first; at other levels it is not."""


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

    names = (revision, None, "main") if revision in (None, "main") else (revision,)
    others: list[str | None] = []
    if commit and revision and commit == revision.lower():
        there = {d.get("revision") for d in deployments.values() if d.get("repo_id") == repo}
        others = [None, "main", *sorted(str(name) for name in there - {None, "main"})]
    for name in (*names, *others):
        if find_deployment(deployments, key(name)) is not None:
            return key(name), name not in names
    return key(revision), False


def find_deployment(
    deployments: Mapping[str, Mapping[str, Any]], key: str | None
) -> dict[str, Any] | None:
    """The deployment of a model key, of several replicas the readiest."""

    def rank(d: Mapping[str, Any]) -> tuple[int, bool]:
        return list(LEVELS).index(d["deployment_level"]), d.get("application_state") != "RUNNING"

    replicas = [
        dict(d)
        for d in deployments.values()
        if d.get("model_key") == key and d.get("deployment_level") in LEVELS
    ]
    return min(replicas, key=rank, default=None)


def deployed(deployments: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a server has deployed, one entry a model.

    Returns
    -------
    list of dict
        ``repository``, ``revision``, ``task``, ``dtype``, ``level`` (``hot``: on its device, ``warm``:
        parked in memory), ``state`` and the number of ``replicas``.
    """
    found = []
    keys = [d.get("model_key") for d in deployments.values()]
    for key in dict.fromkeys(keys):
        best = find_deployment(deployments, key)
        if best is not None:
            found.append(
                {
                    "repository": best.get("repo_id"),
                    "revision": best.get("revision") or "main",
                    "task": best.get("task"),
                    "dtype": best.get("dtype"),
                    "level": str(best.get("deployment_level")).lower(),
                    "state": str(best.get("application_state")).lower(),
                    "replicas": keys.count(key),
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
    level = LEVELS[deployment["deployment_level"]]
    state = str(deployment.get("application_state", "UNKNOWN")).lower()
    return f"{state}, {level}, {deployment.get('dtype', 'dtype unknown')}"


def check_other_deployments(
    deployments: Mapping[str, Mapping[str, Any]], repo: str, revision: str | None
) -> None:
    """Refuse to ask for a second copy of a model that is deployed under another revision."""
    others = {
        str(d["revision"])
        for d in deployed(deployments)
        if d["repository"] == repo and d["task"] == TASK
    } - {revision or "main"}
    if others:
        there = ", ".join(sorted(others))
        raise ModelError(
            f"the server has {repo!r} deployed at revision {there}, not {revision or 'main'}; pass "
            f"--revision {sorted(others)[0]}"
            f"{' or leave --revision out' if others == {'main'} else ''}, or have its operator deploy "
            "yours."
        )
