"""Variables larger than memory: left on disk when read, written piece by piece, linked where whole."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core import indexing

from refusal_nn.store._attrs import plain

CHUNK_BYTES = 4 << 20
_PIECE_BYTES = 32 << 20


def pieces(variable: xr.Variable, chunks: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Regions that make up a variable, each of whole chunks; one if it is small."""
    steps = [max(1, n) for n in variable.shape]
    for axis, chunk in enumerate(chunks):
        size = math.prod(steps) * variable.dtype.itemsize
        if size <= _PIECE_BYTES:
            break
        steps[axis] = chunk * max(1, steps[axis] * _PIECE_BYTES // size // chunk)
    starts = (range(0, n, step) for n, step in zip(variable.shape, steps, strict=True))
    for corner in product(*starts):
        yield tuple(slice(a, a + step) for a, step in zip(corner, steps, strict=True))


def region_chunks(variable: xr.Variable, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Chunks of an array: a batch's region, or all of it, cut further where it is large.

    Parameters
    ----------
    variable : xarray.Variable
    lengths : mapping
        Length of a batch along the dims that batches divide. A chunk's divides it: no two batches
        write to one chunk.
    """
    dims = [str(d) for d in variable.dims]
    chunks = [max(1, min(lengths.get(d, n), n)) for d, n in zip(dims, variable.shape, strict=True)]
    for axis, dim in enumerate(dims):
        size = math.prod(chunks) * storable_dtype(variable.dtype).itemsize
        if size <= CHUNK_BYTES:
            break
        whole = chunks[axis]
        chunks[axis] = max(1, whole * CHUNK_BYTES // size)
        while dim in lengths and whole % chunks[axis]:
            chunks[axis] -= 1
    return tuple(chunks)


def storable_dtype(dtype: np.dtype) -> np.dtype:
    """How a dtype is stored: any kind of string as variable-length UTF-8."""
    return np.dtypes.StringDType() if dtype.kind in "OUT" else dtype


def stored_array(variable: xr.Variable) -> Path | None:
    """Folder of the stored array that a variable is the whole of, as long as nobody has read it."""
    data: Any = variable._data
    while isinstance(data, indexing.MemoryCachedArray | indexing.CopyOnWriteArray):
        data = data.array
    if (
        not isinstance(data, indexing.LazilyIndexedArray)
        or not isinstance(data.array, ZarrArrayWrapper)
        or any(part != slice(None) for part in data.key.tuple)
    ):
        return None
    where = data.array.get_array().store_path
    return Path(where.store.root) / where.path


def link_array(source: Path, target: Path, variable: xr.Variable | None = None) -> None:
    """An array's files under another name; both names last, so a killed commit loses nothing.

    Parameters
    ----------
    source, target : Path
        Folders of the arrays.
    variable : xarray.Variable, optional
        Its dims and attrs are the new array's; default those of the old one.
    """
    for file in source.rglob("*"):
        # zarr's temporary files end in .partial when a kill cut them short
        if file.is_symlink() or not file.is_file() or file.suffix == ".partial":
            continue
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if variable is not None and file == source / "zarr.json":
            own = {"attributes": plain(variable.attrs), "dimension_names": [*variable.dims]}
            copy.write_text(json.dumps({**json.loads(file.read_bytes()), **own}, indent=2))
            continue
        try:
            os.link(file, copy)
        except OSError:
            shutil.copyfile(file, copy)
