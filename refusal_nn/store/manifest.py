"""The manifest of a complete run: the SHA-256 of every file, and the check against it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_nn._files import kind_at, parse_json, quoted
from refusal_nn.errors import StoreError, VerificationError
from refusal_nn.store._attrs import canonical
from refusal_nn.store._inspect import files, inspect, own_bytes, root_attrs
from refusal_nn.store._names import check_name, run_name
from refusal_nn.store._nodes import UnsoundError

NAME = "manifest.json"
_FORMAT = 1
_SHOWN = 8
_MOST_BATCHES = 1 << 24


@dataclass(frozen=True)
class Verification:
    """A run that matches its manifest.

    Attributes
    ----------
    name : str
    n_files : int
        Files compared, the manifest not counted.
    n_bytes : int
    hash : str
        SHA-256 of the manifest: names this run's content, as ``inputs`` of later runs do.
    """

    name: str
    n_files: int
    n_bytes: int
    hash: str


def write(folder: Path) -> None:
    """Hash every file of `folder` into its manifest."""
    (folder / NAME).write_bytes(_text({n: _sha256(p) for n, p in _files(folder).items()}))


def run_hash(folder: str | Path) -> str:
    """SHA-256 of a run's manifest, without reading its data.

    Raises
    ------
    StoreError
        If there is none.
    """
    try:
        return hashlib.sha256(own_bytes(Path(folder) / NAME, what="manifest")).hexdigest()
    except StoreError as e:
        raise StoreError(
            f"run {run_name(folder)!r} has no manifest, so it is not complete ({str(e).rstrip('.')})."
        ) from e


def problems(path: str | Path) -> list[str]:
    """Everything wrong with a run, one sentence each; empty when it is intact.

    Parameters
    ----------
    path : str or Path
        A run directory, or the path of one without ``.zarr``.

    Raises
    ------
    StoreError
        If there is no run at all.
    """
    folder = locate(path)
    try:
        return _problems(folder)
    except MemoryError:  # of this run; others are checked all the same
        return ["checking it takes more memory than there is"]


def verify(path: str | Path) -> Verification:
    """Compare every file of a run with the hash recorded when it was finished.

    Parameters
    ----------
    path : str or Path
        A run directory, or the path of one without ``.zarr``.

    Returns
    -------
    Verification

    Raises
    ------
    VerificationError
        If a file is missing, changed or new, or the run is incomplete; names each.
    StoreError
        If there is no run at all.
    """
    found = problems(path)
    folder = locate(path)
    name = run_name(folder)
    if found:
        more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        fix = (
            "" if folder.name.endswith(".partial") else "; restore it from a copy or make it again"
        )
        raise VerificationError(f"run {name!r}: {'; '.join(found[:_SHOWN])}{more}{fix}.")
    present = _files(folder)
    n_bytes = sum(entry.stat().st_size for entry in present.values())
    return Verification(name, len(present), n_bytes, run_hash(folder))


def locate(path: str | Path) -> Path:
    """The directory of a run given its path, with or without ``.zarr``; complete ones first.

    Raises
    ------
    StoreError
        If there is none, or it can be none.
    """
    check_name(path)
    path = Path(path)
    base = run_name(path)
    complete = path.with_name(f"{base}.zarr")
    partial = path.with_name(f"{base}.zarr.partial")
    order = [partial] if path.name.endswith(".partial") else [complete, partial]
    for folder in order:
        if kind_at(folder) == "folder":
            if folder == complete and not is_run(folder):
                reason = root_attrs(folder)[1] or "its root lacks the attrs that every run has"
                raise StoreError(
                    f"{quoted(folder)} is a directory but not a run of refusal_nn; {reason}."
                )
            return folder
    raise StoreError(
        f"there is no run {base!r} in {str(path.parent)!r}; `refusal-nn runs list` shows those "
        "that exist."
    )


def is_run(folder: Path) -> bool:
    """Whether a directory is a finished run, or was before its root metadata were damaged."""
    return "fingerprint" in read_attrs(folder) or kind_at(folder / NAME) == "file"


def read_attrs(folder: Path) -> dict[str, Any]:
    """Attrs of a group straight from its ``zarr.json``; empty when there are none to read."""
    return root_attrs(folder)[0]


def progress_text(folder: Path) -> str:
    """How far a partial run got, for a person."""
    stages = stage_progress(folder)
    if not stages:
        return "no stage was begun"
    return ", ".join(f"stage {s!r} has {d} of {n} batches" for s, (d, n) in stages.items())


def stage_progress(folder: Path) -> dict[str, tuple[int, int]]:
    """Batches written and batches in all, for each stage of a partial run, in order of creation.

    Raises
    ------
    StoreError
        If something in the run is none of a run's.
    """
    import numpy as np
    import zarr

    inspect(folder)
    found = {}
    stages = [p.parent for p in folder.glob("*/written") if not p.parent.name.startswith(".")]
    for stage in sorted(stages, key=_order):
        try:
            written = zarr.open_array(stage / "written", mode="r", zarr_format=3)
            if written.dtype != bool or written.ndim != 1 or written.size > _MOST_BATCHES:
                raise ValueError("no ledger")
            ledger = np.asarray(written[...])
        except Exception:  # zarr and its codecs each raise their own; going on with the run says it
            continue
        # a loop that goes on: its steps
        found[stage.name.removesuffix(".loop")] = (int(ledger.sum()), int(ledger.size))
    return found


def _problems(folder: Path) -> list[str]:
    if folder.name.endswith(".partial"):
        try:
            return [f"run is incomplete: {progress_text(folder)}; resume it or remove it"]
        except StoreError as e:
            return [str(e).rstrip(".")]
    try:
        recorded = own_bytes(folder / NAME, what="manifest")
        hashes = dict(parse_json(recorded, what=NAME, error=StoreError)["files"])
        intact = _text(hashes) == recorded
    except (StoreError, ValueError, KeyError, TypeError):
        missing = not os.path.lexists(folder / NAME)
        how = "is missing" if missing else "is damaged"
        return [f"{NAME} {how}, so nothing can be checked"]
    found = [] if intact else [f"{NAME} is damaged: it does not match its own checksum"]
    try:
        present = _files(folder)
        for name, expected in sorted(hashes.items()):
            if name not in present:
                found.append(f"{_describe(name)} is missing")
            elif _sha256(present[name]) != expected:
                found.append(f"{_describe(name)} does not match its hash")
        found += [f"{name} is not in the manifest" for name in sorted(set(present) - set(hashes))]
    except UnsoundError as e:
        found.append(str(e))
    except OSError as e:
        found.append(f"{e.filename} cannot be read ({e.strerror})")
    attrs, unread = root_attrs(folder)  # why they are not read is said below
    if intact and not found and not unread and attrs.get("complete") is not True:
        found.append("run is not marked complete")
    if not found:  # what its maker wrote on purpose has the right hash, too
        try:
            inspect(folder)
        except StoreError as e:
            found.append(str(e).rstrip("."))
    return found


def _order(stage: Path) -> tuple[int, str]:
    number = read_attrs(stage).get("stage_number", 0)
    return (number if type(number) is int else 0, stage.name)


def _files(folder: Path) -> dict[str, os.DirEntry[str]]:
    """Every file but the manifest, by its path in the folder."""
    return {name: entry for name, entry in files(folder) if name != NAME}


def _describe(name: str) -> str:
    """A file as a person knows it: which variable, which chunk."""
    folder, _, key = name.partition("/c/")
    if key or name.endswith("/c"):
        return f"chunk {key or '0'} of variable {folder.removesuffix('/c')!r} ({name})"
    if name == "zarr.json":
        return "root metadata (zarr.json)"
    if name.endswith("/zarr.json"):
        return f"metadata of {name.removesuffix('/zarr.json')!r} ({name})"
    return name


def _sha256(entry: os.DirEntry[str]) -> str:
    with Path(entry.path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _text(files: dict[str, str]) -> bytes:
    own = hashlib.sha256(canonical(files).encode()).hexdigest()
    content = {"files": files, "format": _FORMAT, "sha256": own}
    return (json.dumps(content, indent=0, sort_keys=True, ensure_ascii=False) + "\n").encode()
