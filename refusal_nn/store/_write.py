"""Datasets to and from zarr arrays: dtypes, chunks, codecs.

Written through zarr directly: the same layout that ``Dataset.to_zarr`` makes, without its per-call
cost, and with a crc32c checksum on every array. Reading is plain xarray.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from refusal_nn._files import inside
from refusal_nn.errors import StoreError
from refusal_nn.store._attrs import plain
from refusal_nn.store._layout import Layout
from refusal_nn.store._reading import BEGIN_AGAIN, open_stage
from refusal_nn.store._stream import (
    CHUNK_BYTES,
    link_array,
    pieces,
    region_chunks,
    storable_dtype,
    stored_array,
)

_STRINGS_PER_CHUNK = 1000
_RAW_BYTES = 1 << 20
_LOAD_BYTES = 32 << 20


def create_group(path: Path, attrs: Mapping[str, Any]) -> zarr.Group:
    """An empty zarr group at `path`."""
    return zarr.open_group(path, mode="w", zarr_format=3, attributes=plain(attrs))


def write_dataset(
    path: Path,
    ds: xr.Dataset,
    attrs: Mapping[str, Any] | None = None,
    *,
    stages: Path | None = None,
) -> None:
    """Write a whole Dataset as the group `path`.

    What was not read from disk yet is not read as a whole: a large variable of a stage, which lies
    in the folder ``stages``, is linked, another one copied piece by piece.
    """
    group = create_group(path, _group_attrs(ds, ds.attrs if attrs is None else attrs))
    for name, variable in ds.variables.items():
        stored = stored_array(variable) if variable.nbytes >= _RAW_BYTES else None
        if stored is not None and stages is not None and inside(stored, stages):
            link_array(stored, path / str(name), variable)
        else:
            _write_array(group, str(name), variable)


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A folder to write in that becomes `path`, in one step, when it is whole."""
    draft = path.with_name(f".init-{path.name}")
    shutil.rmtree(draft, ignore_errors=True)
    yield draft
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)


def create_stage(path: Path, template: xr.Dataset, layout: Layout) -> None:
    """Lay a stage out: labels written, data arrays declared with one chunk a batch, no data yet."""
    with placed(path) as draft:
        group = create_group(draft, _stage_attrs(path, template, layout.digest))
        for name, variable in template.variables.items():
            if name in template.coords:
                _write_array(group, str(name), variable)
            else:
                chunks = region_chunks(variable, layout.lengths)
                _create(group, str(name), variable, chunks, _codecs(variable, []))
        _create_ledger(group, np.zeros(len(layout), bool))


def write_stage(path: Path, ds: xr.Dataset, digest: str) -> None:
    """Write a whole Dataset as a finished stage, begun for what `digest` names."""
    with placed(path) as draft:
        write_dataset(draft, ds, _stage_attrs(path, ds, digest))
        _create_ledger(zarr.open_group(draft, mode="r+", use_consolidated=False), np.ones(1, bool))


def link_stage(stage: Path, target: Path, ds: xr.Dataset) -> None:
    """A finished stage, read as `ds`, as a group without a second copy of its data."""
    create_group(target, _group_attrs(ds, ds.attrs))
    for name in map(str, ds.variables):
        link_array(stage / name, target / name)


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    """An array of a group, to write to or read."""
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise KeyError(f"{name} is no array")
    # not kept in the metadata: by default zarr drops a chunk that equals the fill value
    return array.with_config({"write_empty_chunks": True})


def read_dataset(path: Path, *, load: bool) -> xr.Dataset:
    """The Dataset of a group, strings as Python objects; with `load`, small variables in memory."""
    ds = open_stage(path)
    return as_objects(load_small(ds) if load else ds)


def read_stage(path: Path, *, load: bool) -> xr.Dataset:
    """The Dataset of a stage, without what was noted of its making."""
    ds = read_dataset(path, load=load).drop_vars("written")
    ds.attrs = {k: v for k, v in ds.attrs.items() if not k.startswith("stage_")}
    return ds


def like(template: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """The variables of a stage as read from disk, which others may have changed meanwhile.

    Raises
    ------
    StoreError
        If the labels and dims are not those it was begun with.
    """
    for name, variable in template.variables.items():
        there = found.variables.get(name)
        if there is None or there.sizes != variable.sizes:
            raise StoreError(f"stage variable {name!r} is not as it was begun; {BEGIN_AGAIN}.")
    return found.set_coords(list(template.coords))[list(template.data_vars)]


def load_small(ds: xr.Dataset) -> xr.Dataset:
    """The same Dataset, with every variable in memory that is not large."""
    for variable in ds.variables.values():
        if variable.nbytes <= _LOAD_BYTES:
            variable.load()
    return ds


def as_objects(ds: xr.Dataset) -> xr.Dataset:
    """A copy whose strings are Python objects, which pandas, netCDF and numpy all take."""
    text = {n: v for n, v in ds.variables.items() if v.dtype.kind in "UT"}
    return ds.assign(
        {n: xr.Variable(v.dims, v.values.astype(object), v.attrs) for n, v in text.items()}
    )


def storable(values: np.ndarray) -> np.ndarray:
    """Values in the dtype they are stored with, in C order."""
    # zarr writes variable-length strings in memory order: a transposed array comes back scrambled
    found = np.asarray(values).astype(storable_dtype(np.asarray(values).dtype), copy=False)
    return np.ascontiguousarray(found).reshape(found.shape)


def consolidate(path: Path) -> None:
    """Copy all metadata into the root, so that a reader opens one file and gets no warning."""
    with warnings.catch_warnings():
        # consolidated metadata is outside the v3 specification, and plain readers want it
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def _create_ledger(group: zarr.Group, written: np.ndarray) -> None:
    ledger = xr.Variable(("batch",), written)
    array = _create(group, "written", ledger, (max(1, written.size),), (Crc32cCodec(),))
    if written.size:
        array[...] = written


def _group_attrs(ds: xr.Dataset, attrs: Mapping[str, Any]) -> dict[str, Any]:
    labels = sorted(str(c) for c in ds.coords if c not in ds.dims)
    # xarray reads which arrays are coordinates from this attr of the group
    return {**attrs, "coordinates": " ".join(labels)} if labels else dict(attrs)


def _stage_attrs(stage: Path, ds: xr.Dataset, digest: str) -> dict[str, Any]:
    """Attrs of the next stage of a run, with what it was begun for and which one it is."""
    number = sum(1 for _ in stage.parent.glob("*/written"))
    return _group_attrs(ds, {**ds.attrs, "stage_digest": digest, "stage_number": number})


def _create(
    group: zarr.Group,
    name: str,
    variable: xr.Variable,
    chunks: tuple[int, ...],
    codecs: tuple[Any, ...],
) -> zarr.Array:
    dtype = storable_dtype(variable.dtype)
    fill: Any = {"f": np.nan, "b": False, "T": ""}.get(dtype.kind, 0)
    return group.create_array(
        name,
        shape=variable.shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        compressors=codecs,
        dimension_names=[str(d) for d in variable.dims],
        attributes=plain(variable.attrs, where=f"attrs of {name!r}"),
        # a chunk equal to the fill value must exist too, or a lost one could not be told from it
        config={"write_empty_chunks": True},
    )


def _write_array(group: zarr.Group, name: str, variable: xr.Variable) -> None:
    chunks = _chunks(variable)
    parts = [*pieces(variable, chunks)] if variable.size else []
    array = _create(group, name, variable, chunks, _codecs(variable, parts))
    for part in parts:
        array[part] = storable(variable[part].values)


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    if variable.dtype.kind in "OUT" and variable.ndim:
        first, *others = (max(1, n) for n in variable.shape)
        return (min(first, _STRINGS_PER_CHUNK), *others)
    return region_chunks(variable, {"layer": 1} if variable.nbytes > CHUNK_BYTES else {})


def _codecs(variable: xr.Variable, parts: Sequence[tuple[slice, ...]]) -> tuple[Any, ...]:
    """Codecs of a variable; ``parts`` are regions of what is known of its values."""
    crc = Crc32cCodec()
    if variable.dtype.kind != "f" or variable.nbytes < _RAW_BYTES:
        return (ZstdCodec(level=0), crc)
    halves = variable.dtype == np.float32 and parts
    if halves and all(_is_bfloat16(variable[part].values) for part in parts):
        return (BloscCodec(typesize=4, cname="zstd", clevel=1, shuffle="shuffle"), crc)
    # measured: zstd saves 7 % of activations and halves the speed
    return (crc,)


def _is_bfloat16(values: np.ndarray) -> bool:
    """Whether every float32 has an empty lower half, as a widened bfloat16 has."""
    return not np.any(np.ascontiguousarray(values).view(np.uint32) & np.uint32(0xFFFF))
