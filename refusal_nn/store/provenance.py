"""Where a run comes from: what must be recorded, and what must never be."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refusal_nn.errors import StoreError
from refusal_nn.store._attrs import canonical, plain

REQUIRED = (
    "analysis",
    "model",
    "revision",
    "tokenizer_hash",
    "template_hash",
    "dtype",
    "device",
    "backend",
    "prompts_hash",
    "interventions",
    "seed",
    "versions",
    "command",
)
"""Keys that must be given; the store adds those of :data:`RESERVED`."""

VOLATILE = ("created", "wall_time", "attempts", "jobs")
"""Keys in which two runs of one request may differ; all else is equal."""

RESERVED = ("name", "complete", "fingerprint", "coordinates", *VOLATILE)
"""Keys the store sets itself."""

_LONG = ("command", "interventions", "prompts_hash")
_MOST_CHARACTERS = 1000
_TEXT = (
    *("analysis", "model", "revision", "tokenizer_hash", "template_hash", "dtype"),
    *("device", "backend", "prompts_hash", "interventions", "command", "name", "fingerprint"),
    "created",
)
_KINDS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(_TEXT, ("text", str)),
    **dict.fromkeys(("options", "speed", "versions", "jobs"), ("a mapping", dict)),
    "inputs": ("a list", list),
    "complete": ("true or false", bool),
    "wall_time": ("a number", int | float),
    "attempts": ("a number", int),
}

_PACKAGES = ("refusal-nn", "nnsight", "torch", "transformers", "xarray", "zarr", "numpy")
_KEY = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
_SECRET_NAME = re.compile(r"(?:^|_)(?:API_?KEY|TOKEN|SECRET|PASSWORD)$")
# a slash that starts a word: not the second one of https://, not the one in "and/or"
_PATH = re.compile(
    r"(?:^|(?<=[\s\"'=,:;(\[]))/(?!/)[^\s\"',;)\]]+|\b[A-Za-z]:\\[^\s\"']+|file://\S+"
)
_NUMBERS = re.compile(r'"float64": ?"[A-Za-z0-9+/=]*"')
"""An intervention's numbers in base64, which may begin with a slash."""


def fingerprint(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request, as 64 hex digits.

    Parameters
    ----------
    request : mapping
        Everything that decides the result: model and revision, prompts hash, options, seed. Values
        with a JSON form; the order of keys does not matter.

    Examples
    --------
    >>> from refusal_nn.store import fingerprint
    >>> fingerprint({"model": "m", "seed": 0}) == fingerprint({"seed": 0, "model": "m"})
    True
    """
    return hashlib.sha256(canonical(request).encode()).hexdigest()


def default_name(noun: str, verb: str, model: str, fingerprint: str) -> str:
    """Name of a run: ``<noun>-<verb>-<model>-<8 of the fingerprint>``.

    Examples
    --------
    >>> from refusal_nn.store import default_name
    >>> default_name("direction", "extract", "org/Some Model", "0123456789abcdef")
    'direction-extract-org-Some-Model-01234567'
    """
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", model).strip("-.")[:100]
    return f"{noun}-{verb}-{slug}-{fingerprint[:8]}"


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Installed versions of `packages` and of Python; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def command_line(argv: Sequence[str]) -> str:
    """A command line fit to be published: absolute paths cut to their last part, keys hidden.

    Examples
    --------
    >>> from refusal_nn.store import command_line
    >>> command_line(["/opt/env/bin/refusal-nn", "demo", "--stores", "/home/me/stores"])
    'refusal-nn demo --stores stores'
    """
    return scrub(shlex.join([_base(a) if a.startswith("/") else a for a in argv]))


def scrub(text: str) -> str:
    """`text` with absolute paths cut to their last part and keys replaced by ``***``."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _KEY.sub("***", text)
    return _PATH.sub(lambda m: _base(m.group()) if _is_path(m.group()) else m.group(), text)


def require_public(value: Any, *, where: str = "attrs") -> None:
    """Check that nothing in `value` is private to this machine or its user.

    Parameters
    ----------
    value : Any
        JSON value, searched to the bottom, keys too.
    where : str
        Name used in the error.

    Raises
    ------
    StoreError
        If a string holds an absolute path or something that looks like a key. The key itself is
        not repeated in the message.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            require_public(str(key), where=f"a key of {where}")
            if key != "float64":
                require_public(inner, where=f"{where}[{str(key)!r}]")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            require_public(inner, where=f"{where}[{i}]")
    elif isinstance(value, str):
        value = _NUMBERS.sub("", value)
        if _KEY.search(value) or any(s in value for s in _secrets()):
            raise StoreError(
                f"{where} holds something that looks like an access key; runs are made to be "
                "shared, so take it out."
            )
        path = next((m.group() for m in _PATH.finditer(value) if _is_path(m.group())), None)
        if path is not None:
            raise StoreError(
                f"{where} holds the absolute path {path!r}; runs are made to be shared, so store a "
                "name or a relative path."
            )


def check(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance as it will be stored, checked.

    Parameters
    ----------
    provenance : mapping
        All of :data:`REQUIRED`; more keys are kept. ``interventions`` may be a list (stored as its
        JSON text). ``inputs`` is a list of ``{"run", "hash"}``.

    Raises
    ------
    StoreError
        If a key is missing, reserved, private or not JSON.
    """
    missing = [k for k in REQUIRED if provenance.get(k) is None]
    if missing:
        raise StoreError(
            f"provenance lacks {', '.join(missing)}; a run without them cannot be reproduced."
        )
    taken = [k for k in RESERVED if k in provenance]
    if taken:
        raise StoreError(f"provenance sets {', '.join(taken)}, which the store itself records.")
    checked = plain(dict(provenance), where="provenance")
    if not isinstance(checked["interventions"], str):
        checked["interventions"] = canonical(checked["interventions"])
    if not isinstance(checked["versions"], dict) or not checked["versions"]:
        raise StoreError("provenance 'versions' must map package names to versions.")
    for entry in checked.get("inputs", []):
        if not isinstance(entry, dict) or set(entry) != {"run", "hash"}:
            raise StoreError(
                f"provenance 'inputs' holds {entry!r}; each must be {{'run': ..., 'hash': ...}}."
            )
    if wrong := unlike(checked):
        raise StoreError(f"provenance: {wrong}.")
    require_public(checked, where="provenance")
    return dict(checked)


def unlike(attrs: Mapping[str, Any]) -> str:
    """What root attrs hold that provenance never does, so that who reads them need not ask; or empty.

    Parameters
    ----------
    attrs : mapping
        Plain data. A key that is missing is not asked for.
    """
    for key, value in attrs.items():
        wanted = _KINDS.get(key)
        if wanted is None:
            continue
        if not isinstance(value, wanted[1]) or (type(value) is bool) is not (wanted[1] is bool):
            return f"attr {key!r} is not {wanted[0]}"
        if isinstance(value, str) and key not in _LONG and len(value) > _MOST_CHARACTERS:
            return f"attr {key!r} has {len(value)} characters, at most {_MOST_CHARACTERS} are read"
    for entry in attrs.get("inputs", ()):
        named = isinstance(entry, dict) and set(entry) == {"run", "hash"}
        if not named or not all(isinstance(value, str) for value in entry.values()):
            return "attr 'inputs' holds something else than names and hashes of runs"
    if not all(isinstance(v, str) for v in attrs.get("versions", {}).values()):
        return "attr 'versions' does not map names to versions"
    return ""


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _secrets() -> list[str]:
    return [v for k, v in os.environ.items() if _SECRET_NAME.search(k.upper()) and len(v) >= 8]


def _is_path(text: str) -> bool:
    # "/s" is a unit and "/" a group; "/data/x" or an existing "/data" is a path
    if not text.startswith("/"):
        return True
    parts = [p for p in text.split("/") if p]
    return len(parts) > 1 or (len(parts) == 1 and Path("/", parts[0]).is_dir())


def _base(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
