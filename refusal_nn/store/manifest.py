"""The manifest of a complete run: the SHA-256 of every file, and the check against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_nn.errors import StoreError, VerificationError
from refusal_nn.store._attrs import canonical

NAME = "manifest.json"
_FORMAT = 1
_SHOWN = 8


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
    files = {str(p.relative_to(folder)): _sha256(p) for p in _files(folder)}
    (folder / NAME).write_bytes(_text(files))


def run_hash(folder: str | Path) -> str:
    """SHA-256 of a run's manifest, without reading its data.

    Raises
    ------
    StoreError
        If there is none.
    """
    try:
        return _sha256(Path(folder) / NAME)
    except OSError as e:
        raise StoreError(f"run {Path(folder).name!r} has no manifest: it is not complete.") from e


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
    if folder.name.endswith(".partial"):
        return [f"run is incomplete: {progress_text(folder)}; resume it or remove it"]
    try:
        recorded = (folder / NAME).read_bytes()
        files = dict(json.loads(recorded)["files"])
        intact = _text(files) == recorded
    except OSError:
        return [f"{NAME} is missing, so nothing can be checked"]
    except (ValueError, KeyError, TypeError):
        return [f"{NAME} is damaged, so nothing can be checked"]
    found = [] if intact else [f"{NAME} is damaged: it does not match its own checksum"]
    present = {str(p.relative_to(folder)): p for p in _files(folder)}
    for name, expected in sorted(files.items()):
        if name not in present:
            found.append(f"{_describe(name)} is missing")
        elif _sha256(present[name]) != expected:
            found.append(f"{_describe(name)} does not match its hash")
    found += [f"{name} is not in the manifest" for name in sorted(set(present) - set(files))]
    if intact and not found and read_attrs(folder).get("complete") is not True:
        found.append("run is not marked complete")
    return found


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
    files = list(_files(folder))
    return Verification(name, len(files), sum(p.stat().st_size for p in files), run_hash(folder))


def locate(path: str | Path) -> Path:
    """The directory of a run given its path, with or without ``.zarr``; complete ones first.

    Raises
    ------
    StoreError
        If there is none.
    """
    path = Path(path)
    base = run_name(path)
    complete = path.with_name(f"{base}.zarr")
    partial = path.with_name(f"{base}.zarr.partial")
    order = [partial] if path.name.endswith(".partial") else [complete, partial]
    for folder in order:
        if folder.is_dir():
            if folder == complete and not is_run(folder):
                raise StoreError(
                    f"{str(folder)!r} is a directory but not a run of refusal_nn; "
                    "its root lacks the attrs that every run has."
                )
            return folder
    raise StoreError(
        f"there is no run {base!r} in {str(path.parent)!r}; `refusal-nn runs list` shows those "
        "that exist."
    )


def is_run(folder: Path) -> bool:
    """Whether a directory is a finished run, or was before its root metadata were damaged."""
    return "fingerprint" in read_attrs(folder) or (folder / NAME).is_file()


def run_name(folder: str | Path) -> str:
    """Name of the run in a directory: without folder and endings."""
    return Path(folder).name.removesuffix(".partial").removesuffix(".zarr")


def read_attrs(folder: Path) -> dict[str, Any]:
    """Attrs of a group straight from its ``zarr.json``; empty when there are none to read."""
    try:
        attrs = json.loads((folder / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # "coordinates" is xarray's note of which arrays are labels, which it hides too
    return {k: v for k, v in attrs.items() if k != "coordinates"} if isinstance(attrs, dict) else {}


def progress_text(folder: Path) -> str:
    """How far a partial run got, for a person."""
    stages = stage_progress(folder)
    if not stages:
        return "no stage was begun"
    return ", ".join(f"stage {s!r} has {d} of {n} batches" for s, (d, n) in stages.items())


def stage_progress(folder: Path) -> dict[str, tuple[int, int]]:
    """Batches written and batches in all, for each stage of a partial run, in order of creation."""
    import numpy as np
    import zarr

    found = {}
    stages = [p.parent for p in folder.glob("*/written") if not p.parent.name.startswith(".")]
    for stage in sorted(stages, key=lambda s: (read_attrs(s).get("stage_number", 0), s.name)):
        try:
            ledger = np.asarray(zarr.open_array(stage / "written", mode="r")[...])
        except (OSError, ValueError, KeyError):
            continue
        # a loop that goes on: its steps
        found[stage.name.removesuffix(".loop")] = (int(ledger.sum()), int(ledger.size))
    return found


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / NAME:
            yield path


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


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _text(files: dict[str, str]) -> bytes:
    own = hashlib.sha256(canonical(files).encode()).hexdigest()
    content = {"files": files, "format": _FORMAT, "sha256": own}
    return (json.dumps(content, indent=0, sort_keys=True, ensure_ascii=False) + "\n").encode()
