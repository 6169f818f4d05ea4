"""The runs a report is made from: read, recognised, and followed back to what they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn import store
from refusal_nn.errors import RequestError, StoreError

DIRECTION = ("extract", "score", "select", "evaluate")
"""Kinds of run of a direction study."""

KINDS = (
    *DIRECTION,
    "patch-positions",
    "patch-heads",
    "attribute-nodes",
    "attribute-edges",
    "circuit-discover",
    "circuit-evaluate",
    "circuit-compare",
)
"""Kinds of run a report knows, in the order of a study."""

_MARKS: dict[str, tuple[str, ...]] = {
    # what tells a kind from the others, most specific first
    "circuit-evaluate": ("circuit_metric", "faithfulness"),
    "circuit-compare": ("iou", "node_iou"),
    "circuit-discover": ("in_circuit",),
    "patch-heads": ("recovery_mean", "head_p_adjusted"),
    "patch-positions": ("recovery_mean", "patched_metric"),
    "attribute-edges": ("edge_score_mean",),
    "attribute-nodes": ("node_score",),
    "evaluate": ("completion", "refused", "coherent"),
    "select": ("selected", "bypass", "induce", "kl"),
    "score": ("bypass", "induce", "kl"),
    "extract": ("direction", "direction_norm"),
}


@dataclass(frozen=True)
class Source:
    """One run, in memory.

    Attributes
    ----------
    name : str
    kind : str
        One of :data:`KINDS`.
    data : xarray.Dataset
        Its root group, strings as objects.
    groups : dict of str to xarray.Dataset
        Its other groups.
    hash : str or None
        SHA-256 of its manifest; None for results that are not on disk.
    """

    name: str
    kind: str
    data: xr.Dataset
    groups: dict[str, xr.Dataset]
    hash: str | None = None

    @property
    def attrs(self) -> dict[str, Any]:
        """Root attrs: provenance and options."""
        return dict(self.data.attrs)

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.data.attrs.get("model", "unnamed model"))

    @property
    def inputs(self) -> dict[str, str]:
        """Hash by name of the runs it was made from."""
        return {str(i["run"]): str(i["hash"]) for i in self.data.attrs.get("inputs", [])}


def read(
    runs: Sequence[str | Path], *, stores: str | Path = "stores", follow: bool = True
) -> list[Source]:
    """Open runs for a report.

    Parameters
    ----------
    runs : sequence of str or Path
        Paths, or names of runs in ``stores``.
    stores : str or Path
        Folder of runs.
    follow : bool
        Add the runs these were made from, as far as they lie in the same folder and still have the
        content they had then.

    Returns
    -------
    list of Source
        In the order of a study.

    Raises
    ------
    RequestError
        If there is no such run, it is partial or it is of a kind that reports do not know.
    VerificationError
        If its files do not match its manifest.
    """
    found: dict[str, Source] = {}
    waiting: list[tuple[Source, Path]] = []
    for run in runs:
        path = _locate(run, Path(stores))
        if (name := store.run_name(path)) not in found:
            found[name] = _open(path)
            waiting.append((found[name], path.parent))
    while follow and waiting:
        source, folder = waiting.pop()
        for name, digest in source.inputs.items():
            path = folder / f"{name}.zarr"
            if name not in found and path.is_dir() and store.run_hash(path) == digest:
                found[name] = _open(path)
                waiting.append((found[name], folder))
    return sorted(found.values(), key=lambda s: KINDS.index(s.kind))


def from_results(results: xr.Dataset | xr.DataTree, *, name: str | None = None) -> Source:
    """A result in memory as a source.

    Raises
    ------
    RequestError
        If it is of a kind that reports do not know.
    """
    tree = results if isinstance(results, xr.DataTree) else xr.DataTree(results)
    root = _plain(tree.to_dataset())
    name = name or str(root.attrs.get("name") or root.attrs.get("analysis") or "results")
    groups = {k: _plain(node.to_dataset()) for k, node in tree.children.items()}
    kind = _kind(root, name)
    if kind == "evaluate" and "rates" not in groups:
        raise RequestError(
            f"run {name!r} holds completions but no group 'rates'; give the whole result of "
            "evaluate, or make the group with refusal_nn.responses.rates."
        )
    return Source(name, kind, root, groups)


def _locate(run: str | Path, stores: Path) -> Path:
    """The directory of a complete run, by path or by name in a folder of runs."""
    given = Path(run)
    named = given.parent == Path() and not given.exists()
    path = store.locate(stores / given if named else given)
    if path.name.endswith(".partial"):
        name = store.run_name(path)
        raise RequestError(
            f"run {name!r} is partial; finish it with `refusal-nn runs resume {name}` first."
        )
    return path


def _open(path: Path) -> Source:
    name = store.run_name(path)
    store.verify(path)
    try:
        tree = xr.open_datatree(path, engine="zarr", chunks=None).load()
    except Exception as error:  # zarr, xarray and the codecs each raise their own
        reason = " ".join(str(error).split())[:200]
        raise StoreError(
            f"run {name!r} cannot be read ({reason}); `refusal-nn runs verify {name}` says what is "
            "damaged."
        ) from error
    source = from_results(tree, name=name)
    return Source(name, source.kind, source.data, source.groups, store.run_hash(path))


def _kind(data: xr.Dataset, name: str) -> str:
    for kind, marks in _MARKS.items():
        if all(mark in data for mark in marks):
            return kind
    held = ", ".join(map(str, data)) or "nothing"
    raise RequestError(
        f"run {name!r} is of no kind that a report can show (it holds {held}); give runs of "
        "direction, patch, attribute or circuit commands."
    )


def _plain(data: xr.Dataset) -> xr.Dataset:
    """Strings as objects: the variable-width strings of a store do not compare like those."""
    changed = {
        name: (v.dims, v.values.astype(object), v.attrs)
        for name, v in data.variables.items()
        if v.dtype.kind in "TU"
    }
    coords = {k: v for k, v in changed.items() if k in data.coords}
    rest = {k: v for k, v in changed.items() if k not in data.coords}
    return data.assign_coords(coords).assign(rest)  # type: ignore[arg-type]


def labels(data: xr.Dataset, name: str) -> list[str]:
    """A coordinate as strings."""
    return [str(v) for v in np.asarray(data[name].values)]
