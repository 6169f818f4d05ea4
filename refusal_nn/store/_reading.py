"""Runs as xarray reads them: looked through before, and read without a raw error after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core import indexing

from refusal_nn._memory import installed_memory
from refusal_nn.errors import RefusalNNError, StoreError
from refusal_nn.store._inspect import inspect
from refusal_nn.store._names import run_name

_AS_WRITTEN: dict[str, Any] = {
    "mask_and_scale": False,
    "decode_times": False,
    "decode_timedelta": False,
    "concat_characters": False,
}
"""Numbers and texts are stored as they are; attrs of a stranger's must not turn them into others."""

BEGIN_AGAIN = "remove the partial run and begin again"
"""What is done about a stage that cannot be read."""


@contextmanager
def reading(name: str, fix: str = "") -> Iterator[None]:
    """Say of a run that cannot be read that it is damaged, whatever zarr, xarray and codecs raise.

    Raises
    ------
    StoreError
    """
    try:
        yield
    except RefusalNNError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        fix = fix or f"`refusal-nn runs verify {name}` says what is damaged"
        raise StoreError(f"run {name!r} cannot be read ({reason}); {fix}.") from e


def open_tree(folder: Path, chunks: Mapping[str, int] | str | None = None) -> xr.DataTree:
    """A run as a tree, lazily.

    Raises
    ------
    StoreError
        If it is none that can be read.
    """
    inspect(folder)
    lazily: Any = chunks  # narrower than what xarray says it takes
    with reading(run_name(folder)):
        tree = xr.open_datatree(folder, engine="zarr", chunks=lazily, **_AS_WRITTEN)
        for node in tree.subtree:
            _translate(node.to_dataset(inherit=False), run_name(folder))
        return tree


def open_group(
    folder: Path, group: str | None, chunks: Mapping[str, int] | str | None = None
) -> xr.Dataset:
    """One group of a run, lazily; by default the root.

    Raises
    ------
    StoreError
        If it is none that can be read.
    """
    inspect(folder)
    lazily: Any = chunks
    with reading(run_name(folder)):
        ds = xr.open_zarr(folder, group=group, chunks=lazily, zarr_format=3, **_AS_WRITTEN)
        return _translate(ds, run_name(folder))


def open_stage(folder: Path) -> xr.Dataset:
    """A group of a partial run, lazily; the run was looked through when its writing began."""
    run = next((p for p in folder.parents if p.name.endswith(".partial")), folder.parent)
    with reading(run_name(run), BEGIN_AGAIN):
        ds = xr.open_zarr(folder, chunks=None, consolidated=False, zarr_format=3, **_AS_WRITTEN)
        return _translate(ds, run_name(run), BEGIN_AGAIN)


def load(tree: xr.DataTree, name: str) -> xr.DataTree:
    """A run with all that is in it in memory.

    Raises
    ------
    StoreError
        If it cannot be read, or is larger than the memory of this machine.
    """
    wanted = sum(v.nbytes for node in tree.subtree for v in node.dataset.variables.values())
    held = installed_memory()
    if held is not None and wanted > held:
        raise StoreError(
            f"run {name!r} would take {wanted / 2**30:,.0f} GiB, and this machine has "
            f"{held / 2**30:,.0f} GiB of memory; open it with Run.open and read a part."
        )
    with reading(name):
        return tree.load()


class _Translated(ZarrArrayWrapper):
    """An array whose reading raises our errors, whoever reads it and whenever."""

    __slots__ = ("_said",)

    def __init__(self, array: Any, *said: str) -> None:
        super().__init__(array)
        self._said = said

    def __getitem__(self, key: Any) -> Any:
        with reading(*self._said):
            return super().__getitem__(key)


def _translate(ds: xr.Dataset, *said: str) -> xr.Dataset:
    for variable in ds.variables.values():
        data: Any = variable._data
        while isinstance(data, indexing.MemoryCachedArray | indexing.CopyOnWriteArray):
            data = data.array
        lazy = isinstance(data, indexing.LazilyIndexedArray)
        if lazy and type(data.array) is ZarrArrayWrapper:
            data.array = _Translated(data.array.get_array(), *said)
    return ds
