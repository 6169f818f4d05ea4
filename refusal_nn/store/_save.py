"""Save a result of a library call as a run."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store import provenance as _provenance
from refusal_nn.store._attrs import canonical, plain
from refusal_nn.store._write import as_objects
from refusal_nn.store.run_recorder import RunRecorder
from refusal_nn.store.variables import annotate


def save_run(
    data: xr.Dataset | xr.DataTree, path: str | Path, provenance: Mapping[str, Any] | None
) -> Path:
    """See :func:`refusal_nn.store.save`."""
    groups = _groups(data)
    attrs = {k: v for k, v in groups["/"].attrs.items() if k not in _provenance.RESERVED}
    known = {
        "analysis": "saved",
        "versions": _provenance.versions(),
        "command": _provenance.command_line(sys.argv),
        "seed": 0,
        "interventions": [],
        **attrs,
        **(provenance or {}),
    }
    keys = dict.fromkeys([*_provenance.REQUIRED, *(provenance or {}), "inputs"])
    record = {k: known[k] for k in keys if k in known}
    groups["/"].attrs = {k: v for k, v in attrs.items() if k not in record}
    digest = _hash(groups, record)
    with RunRecorder(path, fingerprint=digest, provenance=record, request={}) as recorder:
        if not recorder.already_complete:
            recorder.commit(groups)
    return recorder.path


def _groups(data: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    if isinstance(data, xr.Dataset):
        return {"/": as_objects(data)}
    if isinstance(data, xr.DataTree):
        # a group must be readable alone, so it gets the labels it inherits
        found = {n.path.strip("/") or "/": as_objects(n.to_dataset()) for n in data.subtree}
        return {k: ds for k, ds in found.items() if k == "/" or ds.variables or ds.attrs}
    raise StoreError(
        f"cannot save a {type(data).__name__}; give an xarray Dataset or DataTree "
        "(DataArray.to_dataset makes one)."
    )


def content_hash(data: xr.Dataset | xr.DataTree) -> str:
    """SHA-256 of a result's arrays, labels and attrs, as 64 hex digits: what a run's hash is to a run."""
    return _hash(_groups(data), {})


def _hash(groups: Mapping[str, xr.Dataset], record: Mapping[str, Any]) -> str:
    volatile = {"command", "versions"}
    digest = hashlib.sha256(
        canonical({k: v for k, v in record.items() if k not in volatile}).encode()
    )
    for name, ds in sorted(groups.items()):
        ds = annotate(ds)
        digest.update(canonical([name, plain(ds.attrs)]).encode())
        for key in sorted(map(str, ds.variables)):
            values = np.asarray(ds[key].values)
            digest.update(canonical([key, list(ds[key].dims), list(values.shape)]).encode())
            text = values.dtype == object
            digest.update(
                canonical(values.tolist()).encode() if text else np.ascontiguousarray(values).data
            )
    return digest.hexdigest()
