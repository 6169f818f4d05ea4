"""How a stage is cut: which region each batch fills, and the chunks that follow from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store._attrs import canonical, plain

Region = Mapping[str, slice]

_BEGUN = {
    "stage": "other labels, shapes or batches",
    "loop": "another state, other records or another number of steps",
}
"""What differs where a stage or loop is not what it was begun as."""


@dataclass(frozen=True)
class Layout:
    """The batches of one stage.

    Attributes
    ----------
    stage : str
    lengths : dict
        Batch length along each dim that the batches divide; the chunk length there.
    regions : list of dict
        ``(start, stop)`` by dim, one entry a batch.
    digest : str
        SHA-256 of everything fixed before the stage runs: labels, shapes, dtypes and regions.
    """

    stage: str
    lengths: dict[str, int]
    regions: list[dict[str, tuple[int, int]]]
    digest: str

    def __len__(self) -> int:
        return len(self.regions)

    def indexer(self, batch: int, dims: Sequence[object]) -> tuple[slice, ...]:
        """Where batch number `batch` lies in an array with `dims`."""
        region = self.regions[batch]
        return tuple(slice(*region[str(d)]) if d in region else slice(None) for d in dims)


def plan(stage: str, template: xr.Dataset, batches: Sequence[Region]) -> Layout:
    """Check that the batches tile the template on a regular grid, and describe them.

    Raises
    ------
    StoreError
        If batches overlap, leave gaps, are uneven, or a variable is not divided by them.
    """
    dims = tuple(batches[0]) if batches else ()
    for dim in dims:
        if dim not in template.sizes:
            raise StoreError(
                f"stage {stage!r}: batches divide dim {dim!r}, which its template does not have."
            )
    for name, variable in template.data_vars.items():
        absent = [d for d in dims if d not in variable.dims]
        if absent and len(batches) > 1:
            raise StoreError(
                f"stage {stage!r}: variable {name!r} lacks dim {absent[0]!r}, so every batch would "
                "write all of it; give it that dim or its own stage."
            )
    regions = []
    for i, batch in enumerate(batches):
        if tuple(sorted(batch)) != tuple(sorted(dims)):
            raise StoreError(
                f"stage {stage!r}: batch {i} divides {sorted(batch)}, batch 0 {sorted(dims)}; "
                "all batches must divide the same dims."
            )
        regions.append({d: _bounds(stage, i, batch[d], template.sizes[d]) for d in dims})
    lengths = {d: max((r[d][1] - r[d][0] for r in regions), default=1) for d in dims}
    _require_grid(stage, template, regions, lengths)
    return Layout(stage, lengths, regions, _digest(template, regions))


def _bounds(stage: str, batch: int, where: slice, size: int) -> tuple[int, int]:
    start, stop, step = where.indices(size)
    if step != 1 or stop <= start:
        raise StoreError(f"stage {stage!r}: batch {batch} is {where}; use slice(start, stop).")
    return start, stop


def _require_grid(
    stage: str,
    template: xr.Dataset,
    regions: list[dict[str, tuple[int, int]]],
    lengths: dict[str, int],
) -> None:
    seen = set()
    for i, region in enumerate(regions):
        for dim, (start, stop) in region.items():
            # an off-chunk region would rewrite a neighbour's chunk, and a crash would lose it
            if start % lengths[dim] or stop != min(start + lengths[dim], template.sizes[dim]):
                raise StoreError(
                    f"stage {stage!r}: batch {i} covers {dim}[{start}:{stop}], off the grid of "
                    f"{lengths[dim]}; batches must be equally long, only the last one shorter."
                )
        seen.add(tuple(sorted(region.items())))
    needed = math.prod(-(-template.sizes[d] // n) for d, n in lengths.items())
    if regions and len(seen) != len(regions):
        raise StoreError(f"stage {stage!r}: two batches cover the same region.")
    if regions and len(seen) != needed:
        raise StoreError(
            f"stage {stage!r}: {len(seen)} batches cover {needed} regions; every part must be "
            "covered exactly once."
        )


def _digest(template: xr.Dataset, regions: list[dict[str, tuple[int, int]]]) -> str:
    digest = hashlib.sha256(canonical(regions).encode())
    for name in sorted(map(str, template.variables)):
        variable = template.variables[name]
        strings = variable.dtype.kind in "OUT"
        kind = "string" if strings else str(variable.dtype)
        digest.update(canonical([name, list(variable.dims), list(variable.shape), kind]).encode())
        if name in template.coords:
            values = np.asarray(variable.values)
            digest.update(
                canonical([str(v) for v in values.ravel()]).encode()
                if strings
                else np.ascontiguousarray(values).tobytes()
            )
    digest.update(canonical(plain(template.attrs)).encode())
    return digest.hexdigest()


def require_same(kind: Literal["stage", "loop"], name: str, begun: object, digest: str) -> None:
    """Check that what is asked for again is what was begun.

    Raises
    ------
    StoreError
        If the digests differ.
    """
    if begun != digest:
        raise StoreError(
            f"{kind} {name!r} was begun with {_BEGUN[kind]} than now; resume with the options of the "
            "first attempt, or remove the partial run."
        )


def fit(layout: Layout, template: xr.Dataset, batch: int, part: xr.Dataset) -> xr.Dataset:
    """The result of a batch, checked and ordered as the template is.

    Parameters
    ----------
    layout : Layout
    template : xarray.Dataset
    batch : int
    part : xarray.Dataset
        What ``compute(batch)`` returned: the template's variables with the batch's shape.

    Raises
    ------
    StoreError
        If variables, dims, shape, labels or kind of value differ from the template's.
    """
    region = {dim: slice(*bounds) for dim, bounds in layout.regions[batch].items()}
    where = f"stage {layout.stage!r}, batch {batch}"
    return matched(where, template.isel(region), part, "the region")


def matched(where: str, template: xr.Dataset, part: xr.Dataset, meant: str) -> xr.Dataset:
    """`part` in the form of `template`, checked and ordered as it is.

    Parameters
    ----------
    where : str
        Whose result it is, for errors.
    template, part : xarray.Dataset
    meant : str
        What the template is, for errors.

    Raises
    ------
    StoreError
        If variables, dims, shape, labels or kind of value differ from the template's.
    """
    if set(part.data_vars) != set(template.data_vars):
        raise StoreError(
            f"{where}: computed {sorted(map(str, part.data_vars))}, "
            f"the template has {sorted(map(str, template.data_vars))}."
        )
    fitted = {}
    for name, wanted in template.data_vars.items():
        got = part[name].variable
        if set(got.dims) != set(wanted.dims):
            raise StoreError(
                f"{where}: variable {name!r} has dims {got.dims}, the template {wanted.dims}."
            )
        got = got.transpose(*wanted.dims)
        if got.shape != wanted.shape:
            raise StoreError(
                f"{where}: variable {name!r} has shape {got.shape}, {meant} is {wanted.shape}."
            )
        fitted[name] = (wanted.dims, _cast(where, str(name), got.values, wanted.dtype))
    for name in template.coords:
        if name in part.coords and part[name].dims == template[name].dims:
            expected = template[name].values
            if not np.array_equal(np.asarray(part[name].values, expected.dtype), expected):
                raise StoreError(
                    f"{where}: coordinate {name!r} is not the template's there; "
                    "the batch was computed for other rows."
                )
    return xr.Dataset(fitted)


def _cast(where: str, name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "OUT":
        return np.asarray(values, dtype=object)
    if values.dtype == dtype:
        return values
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise StoreError(
            f"{where}: variable {name!r} is {values.dtype}, the template declares {dtype}."
        )
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    # float16 ends at 65504, which residual streams exceed
    if dtype.kind == "f" and not np.array_equal(np.isfinite(cast), np.isfinite(values)):
        raise StoreError(
            f"{where}: variable {name!r} overflows {dtype}; declare a wider dtype in the template."
        )
    return cast
