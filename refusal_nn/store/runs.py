"""What a person does with a run: look at it, and remove it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from refusal_nn._files import kind_at
from refusal_nn.errors import StoreError
from refusal_nn.store._disk import writing
from refusal_nn.store._lock import Lock
from refusal_nn.store._names import run_name
from refusal_nn.store._partial import ATTEMPTS, REQUEST
from refusal_nn.store.catalogue import find_run
from refusal_nn.store.manifest import locate, read_attrs, run_hash, stage_progress

SAMPLE = "sample-direction-evaluate-tiny-refuser"


def sample_run() -> Path:
    """The small complete run that ships inside the package, made by ``make sample``.

    Examples
    --------
    >>> import xarray as xr
    >>> from refusal_nn.store import sample_run
    >>> run = xr.open_datatree(sample_run(), engine="zarr")
    >>> run["refused"].dims
    ('intervention', 'prompt')
    >>> run["rates"]["refusal_rate"].attrs["units"]
    '0 to 1'
    """
    return Path(__file__).with_name("sample") / f"{SAMPLE}.zarr"


def describe(path: str | Path) -> dict[str, Any]:
    """A run as plain data: state, attrs, and for each group its dims and variables.

    Parameters
    ----------
    path : str or Path
        A run directory, with or without its endings.

    Returns
    -------
    dict
        ``name``, ``state``, ``hash``, ``attrs``; ``groups`` maps a group to ``dims`` (name to size)
        and ``variables`` (name to ``dims``, ``dtype``, ``units``, ``summary``); for a partial run
        ``stages`` maps a stage to ``[written, total]`` batches instead.

    Raises
    ------
    StoreError
        If there is no such run, or something in its folder is none of a run's.
    """
    run = find_run(path)
    if run.state == "damaged":
        run.require_complete()
    shown: dict[str, Any] = {"name": run.name, "state": run.state, "attrs": run.attrs}
    if run.state == "partial":
        return {**shown, "stages": {k: list(v) for k, v in stage_progress(run.path).items()}}
    groups: dict[str, Any] = {}
    for node in run.open().subtree:
        if not node.variables and node.path != "/":
            continue
        groups[node.path] = {
            "dims": {str(d): int(n) for d, n in node.sizes.items()},
            "variables": {
                str(name): {
                    "dims": [str(d) for d in v.dims],
                    "dtype": "string" if v.dtype.kind in "OUT" else str(v.dtype),
                    "units": v.attrs.get("units", ""),
                    "summary": v.attrs.get("long_name", ""),
                }
                for name, v in [*node.coords.items(), *node.data_vars.items()]
            },
        }
    return {**shown, "hash": run_hash(run.path), "groups": groups}


def remove(path: str | Path) -> Path:
    """Delete a run, complete or partial.

    Parameters
    ----------
    path : str or Path
        A run directory, with or without its endings; the complete run where both exist.

    Returns
    -------
    Path
        The directory that is gone.

    Raises
    ------
    StoreError
        If it is not a run, or a process is writing it.
    """
    folder = locate(path)
    if folder.is_symlink():
        raise StoreError(f"{str(folder)!r} is a link; remove what it points to by its own name.")
    if folder.name.endswith(".partial"):
        # empty: killed while being made by an older process; anything else must look like a run
        marked = any(kind_at(folder / name) == "file" for name in (REQUEST, ATTEMPTS))
        if any(folder.iterdir()) and not marked and not read_attrs(folder):
            raise StoreError(f"{str(folder)!r} is not a run of refusal_nn; remove it by hand.")
        with writing(folder):
            lock = Lock(folder)
            if lock.usable():
                lock.acquire()
            shutil.rmtree(folder)
            lock.release()
        return folder
    with writing(folder):
        # under another name first: a half-deleted run must not look complete
        doomed = folder.with_name(f".{run_name(folder)}.removing")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
    return folder
