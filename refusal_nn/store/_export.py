"""A run in formats that other programs read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store._disk import replacing, writing
from refusal_nn.store._write import as_objects
from refusal_nn.store.catalogue import find_run

FORMATS = ("netcdf", "csv")


def export(
    path: str | Path, out: str | Path, *, kind: str | None = None, group: str | None = None
) -> Path:
    """Write a run to a netCDF or CSV file.

    Parameters
    ----------
    path : str or Path
        A complete run, with or without ``.zarr``.
    out : str or Path
        File to make; it must not exist.
    kind : {"netcdf", "csv"}, optional
        Default by the ending of `out` (``.nc``, ``.csv``). netCDF holds all groups, float16 as
        float32 and dict attrs as JSON text; it needs the ``netcdf`` extra. CSV holds one group with
        one row for each combination of labels; all its variables must fit in one table.
    group : str, optional
        For CSV; default the root.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    VerificationError
        If the run's files do not match its manifest.
    StoreError
        If the run is partial, the format unknown or not installed, or the file exists.
    """
    out = Path(out)
    run = find_run(path)
    kind = kind or {".nc": "netcdf", ".csv": "csv"}.get(out.suffix, out.suffix or "none")
    if kind not in FORMATS:
        raise StoreError(
            f"unknown export format {kind!r}; end the file in .nc or .csv, or name the kind."
        )
    if not out.parent.is_dir():
        raise StoreError(f"there is no folder {str(out.parent)!r} to export to; make it first.")
    if out.exists():
        raise StoreError(f"{str(out)!r} exists; choose another file or delete it first.")
    run.require_complete()
    run.verify()
    with writing(out), replacing(out) as draft:
        if kind == "csv":
            _table(run.dataset(group)).to_csv(draft, index=False)
        else:
            _write_netcdf(run.load(), draft)
    return out


def _write_netcdf(tree: xr.DataTree, out: Path) -> None:
    try:
        import h5netcdf  # noqa: F401
    except ImportError as e:
        raise StoreError(
            "netCDF export needs h5netcdf; install it with `pip install 'refusal-nn[netcdf]'`."
        ) from e
    groups = {n.path: _for_netcdf(n.to_dataset(inherit=False)) for n in tree.subtree}
    xr.DataTree.from_dict(groups).to_netcdf(out, engine="h5netcdf", format="NETCDF4")


def _for_netcdf(ds: xr.Dataset) -> xr.Dataset:
    ds = as_objects(ds.load())
    half = {n: v.astype(np.float32) for n, v in ds.variables.items() if v.dtype == np.float16}
    ds = ds.assign(half)
    for variable in ds.variables.values():
        variable.encoding = {}
        variable.attrs = {k: _netcdf_attr(v) for k, v in variable.attrs.items()}
    ds.attrs = {k: _netcdf_attr(v) for k, v in ds.attrs.items()}
    return ds


def _netcdf_attr(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return value


def _table(ds: xr.Dataset) -> Any:
    ds = as_objects(ds.load())
    if not ds.data_vars:
        raise StoreError("there are no variables in that group; name another with --group.")
    dims = set().union(*(v.dims for v in ds.data_vars.values()))
    cells = math.prod(ds.sizes[d] for d in dims)
    largest = max(v.size for v in ds.data_vars.values())
    if cells > max(largest, 1_000_000):
        raise StoreError(
            f"the variables of this group have different dims ({', '.join(map(str, dims))}): one "
            f"table would have {cells} rows; export to .nc instead."
        )
    return ds.to_dataframe().reset_index()
