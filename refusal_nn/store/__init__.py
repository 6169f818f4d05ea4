"""Runs as labelled zarr stores: declared variables, resumable writing, a catalogue, verification.

The only code that writes zarr. A finished run is one directory ``<name>.zarr`` that plain xarray
opens; see :class:`RunRecorder` for how it comes to be and :func:`open_runs` for how to find it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refusal_nn._lazy import lazy
from refusal_nn.store import _declared as _declared
from refusal_nn.store._jobs import JobLedger, Streaming, forget_jobs, job_ledgers
from refusal_nn.store._names import check_name, run_name, run_path
from refusal_nn.store._partial import request_of, typed_before
from refusal_nn.store.catalogue import Catalogue, Run, find_run, open_runs
from refusal_nn.store.manifest import (
    Verification,
    locate,
    problems,
    read_attrs,
    run_hash,
    verify,
)
from refusal_nn.store.provenance import command_line, default_name, fingerprint, scrub, versions
from refusal_nn.store.runs import describe, remove, sample_run
from refusal_nn.store.variables import REGISTRY, Spec, annotate, lookup, register

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr

    from refusal_nn.store._export import export
    from refusal_nn.store._loop import step_rng
    from refusal_nn.store._protocol import Compute, Iterating, Looped, Next, Progress, Recorder
    from refusal_nn.store._save import content_hash
    from refusal_nn.store.recorder import MemoryRecorder
    from refusal_nn.store.run_recorder import RunRecorder

# loaded on first use: listing runs needs neither xarray nor zarr
_HOMES = {
    "_export": ("export",),
    "_loop": ("step_rng",),
    "_protocol": ("Compute", "Iterating", "Looped", "Next", "Progress", "Recorder"),
    "_save": ("content_hash",),
    "recorder": ("MemoryRecorder",),
    "run_recorder": ("RunRecorder",),
}

__all__ = [
    "REGISTRY",
    "Catalogue",
    "Compute",
    "Iterating",
    "JobLedger",
    "Looped",
    "MemoryRecorder",
    "Next",
    "Progress",
    "Recorder",
    "Run",
    "RunRecorder",
    "Spec",
    "Streaming",
    "Verification",
    "annotate",
    "check_name",
    "command_line",
    "content_hash",
    "default_name",
    "describe",
    "export",
    "find_run",
    "fingerprint",
    "forget_jobs",
    "job_ledgers",
    "locate",
    "lookup",
    "open_runs",
    "problems",
    "read_attrs",
    "register",
    "remove",
    "request_of",
    "run_hash",
    "run_name",
    "run_path",
    "sample_run",
    "save",
    "scrub",
    "step_rng",
    "typed_before",
    "verify",
    "versions",
]


def save(
    data: xr.Dataset | xr.DataTree,
    path: str | Path,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Dataset or tree as a complete run: checked, annotated, hashed, in one step.

    Parameters
    ----------
    data : xarray.Dataset or xarray.DataTree
        Declared variables only, see :func:`annotate`. What the analyses return carries its
        provenance in its attrs.
    path : str or Path
        ``stores/<name>``, with or without ``.zarr``.
    provenance : mapping, optional
        Keys of :data:`refusal_nn.store.provenance.REQUIRED` that the attrs of `data` lack; these
        win over the attrs. Versions and command line are filled in.

    Returns
    -------
    Path
        The run directory. If it is there already with equal content, nothing is written.

    Raises
    ------
    StoreError
        If a variable or provenance is not as it must be, or the name is taken.
    """
    # a real function, not a lazy name: nnsight mounts ``.save`` on object, so a missing one is
    # found there before a module's __getattr__ is asked
    from refusal_nn.store._save import save_run

    return save_run(data, path, provenance)


__getattr__, __dir__ = lazy(__name__, _HOMES)
