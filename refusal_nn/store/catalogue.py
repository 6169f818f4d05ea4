"""The runs of a folder as a table: filtered by what their root attrs say, opened only after."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from refusal_nn._files import kind_at, quoted
from refusal_nn._terminal import one_line
from refusal_nn.errors import StoreError
from refusal_nn.store._inspect import NODE, refusal, root_attrs
from refusal_nn.store._names import run_name
from refusal_nn.store.manifest import NAME as MANIFEST
from refusal_nn.store.manifest import Verification, locate, progress_text, run_hash, verify
from refusal_nn.store.provenance import unlike

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_WIDEST = 80
_COLUMNS = ("name", "state", "analysis", "model", "backend", "created")


@dataclass(frozen=True)
class Run:
    """One run of a folder.

    Attributes
    ----------
    name : str
    path : Path
    state : {"complete", "partial", "damaged"}
        Damaged is what does not even say what it is; whether a run can be read is found on opening.
    attrs : dict
        Root attrs: provenance and what the analysis recorded.
    reused : bool
        Of a run that was asked for: it was there before, and nothing was computed.
    chunks : mapping or str, optional
        How it is opened, as :func:`xarray.open_datatree` takes it; lazy arrays without dask by default.
    reason : str
        Of a damaged run: what is wrong with it.
    """

    name: str
    path: Path
    state: str
    attrs: dict[str, Any] = field(repr=False, hash=False)
    reused: bool = False
    chunks: Mapping[str, int] | str | None = field(default=None, repr=False, hash=False)
    reason: str = field(default="", repr=False)

    @cached_property
    def tree(self) -> xr.DataTree:
        """The run as a tree, lazily; opened once."""
        return self.open()

    @property
    def hash(self) -> str:
        """Names the run's content, as ``inputs`` of later runs do."""
        return run_hash(self.path)

    def open(self) -> xr.DataTree:
        """The run as a tree, lazily.

        Raises
        ------
        StoreError
            If it is partial, or something in its folder is none of a run's; so raises what is read of
            it later, where it is damaged.
        """
        from refusal_nn.store._reading import open_tree

        self.require_complete()
        return open_tree(self.path, self.chunks)

    def load(self) -> xr.DataTree:
        """The run as a tree, all of it in memory.

        Raises
        ------
        StoreError
            If it is partial, cannot be read, or is larger than this machine's memory.
        """
        from refusal_nn.store._reading import load

        return load(self.open(), self.name)

    def dataset(self, group: str | None = None) -> xr.Dataset:
        """One group of the run, lazily; by default the root.

        Raises
        ------
        StoreError
            If the run is partial or has no such group, or as :meth:`open`.
        """
        from refusal_nn.store._reading import open_group

        self.require_complete()
        if group and group.strip("/") not in (groups := self.groups()):
            raise StoreError(f"run {self.name!r} has no group {group!r}; groups: {groups}.")
        return open_group(self.path, group, self.chunks)

    def groups(self) -> list[str]:
        """Names of the groups below the root.

        Raises
        ------
        StoreError
            If it is partial.
        """
        return sorted(node.path.strip("/") for node in self.open().descendants)

    def verify(self) -> Verification:
        """Compare every file with its hash; see :func:`refusal_nn.store.verify`."""
        return verify(self.path)

    def row(self) -> dict[str, Any]:
        """Attrs as one flat row: nested keys joined by dots."""
        flat = _flatten(self.attrs)
        return {**flat, "name": self.name, "state": self.state, "path": str(self.path)}

    def require_complete(self) -> None:
        """Refuse a run that cannot be opened.

        Raises
        ------
        StoreError
            If it is damaged or partial.
        """
        if self.state == "damaged":
            raise StoreError(refusal(self.name, self.reason))
        if self.state != "complete":
            raise StoreError(
                f"run {self.name!r} is partial ({progress_text(self.path)}); "
                f"resume it with `refusal-nn runs resume {self.name}`."
            )


class Catalogue(Sequence[Run]):
    """Runs, sorted by name. Made by :func:`open_runs`.

    Parameters
    ----------
    runs : sequence of Run
    folder : Path
        Where they were found.
    """

    def __init__(self, runs: Sequence[Run], folder: Path) -> None:
        self._runs = list(runs)
        self.folder = folder

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, key: int | str) -> Run: ...
    @overload
    def __getitem__(self, key: slice) -> Catalogue: ...
    def __getitem__(self, key: int | str | slice) -> Run | Catalogue:
        """A run by number or name, or a part of the catalogue."""
        if isinstance(key, slice):
            return Catalogue(self._runs[key], self.folder)
        if not isinstance(key, str):
            return self._runs[key]
        for run in self._runs:
            if run.name == run_name(key):
                return run
        raise StoreError(
            f"there is no run {key!r} in {str(self.folder)!r}; there are "
            f"{', '.join(self.names) or 'none'}."
        )

    def __repr__(self) -> str:
        title = f"<Catalogue: {len(self)} run{'' if len(self) == 1 else 's'}>"
        if not self._runs:
            return title
        rows = [r.row() for r in self._runs]
        columns = [[c, *(_cell(row.get(c, "")) for row in rows)] for c in _COLUMNS]
        even = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
        return "\n".join([title, *("  ".join(line).rstrip() for line in zip(*even, strict=True))])

    @property
    def names(self) -> list[str]:
        """Names of the runs."""
        return [r.name for r in self._runs]

    def select(self, **conditions: Any) -> Catalogue:
        """The runs whose attrs meet every condition.

        Parameters
        ----------
        **conditions
            ``attr=value``, ``attr=[values]`` or ``attr=function``; ``state`` and ``name`` count as
            attrs, nested attrs are reached with a double underscore (``versions__torch="2.13.0"``).

        Raises
        ------
        StoreError
            If no run at all has one of the attrs: most likely a typing error. Runs that are damaged
            have none but ``name``, ``state`` and ``path``.
        """
        rows = [r.row() for r in self._runs]
        sound = [row for row in rows if row["state"] != "damaged"]
        wanted = {k.replace("__", "."): v for k, v in conditions.items()}
        for key in wanted:
            if sound and not any(key in row for row in rows):
                common = sorted(set.intersection(*(set(row) for row in sound)))
                raise StoreError(f"no run has the attr {key!r}; all runs have {', '.join(common)}.")
        runs = [
            run
            for run, row in zip(self._runs, rows, strict=True)
            if all(k in row and _meets(row[k], v) for k, v in wanted.items())
        ]
        return Catalogue(runs, self.folder)

    def to_frame(self) -> pd.DataFrame:
        """All attrs as a table, one row a run, nested attrs as columns with dots."""
        import pandas as pd

        frame = pd.DataFrame([r.row() for r in self._runs])
        first = [c for c in (*_COLUMNS, "path") if c in frame]
        return frame[[*first, *(c for c in frame if c not in first)]]

    def to_dataset(
        self,
        group: str | None = None,
        *,
        variables: Sequence[str] | None = None,
        allow_partial: bool = False,
        join: Literal["exact", "outer", "inner"] = "exact",
    ) -> xr.Dataset:
        """One group of every run, concatenated along a new dim ``run``.

        Parameters
        ----------
        group : str, optional
            Default the root.
        variables : sequence of str, optional
            Read only these: with numpy-backed arrays, concatenating reads what it joins.
        allow_partial : bool
            Leave partial runs out instead of refusing.
        join : {"exact", "outer", "inner"}
            What to do when runs have other layers, positions or categories; outer fills with NaN.

        Returns
        -------
        xarray.Dataset
            With coords ``run`` (names), ``model`` and ``analysis`` along ``run``. Lazy where dask
            is installed. Attrs are those in which all runs agree.

        Raises
        ------
        StoreError
            If there are no runs, one is partial or damaged, or they do not fit together.
        """
        from refusal_nn.store._join import join_runs

        for run in self._runs:
            if run.state == "damaged":
                run.require_complete()
        partial = [r.name for r in self._runs if r.state != "complete"]
        if partial and not allow_partial:
            raise StoreError(
                f"run {', '.join(partial)} is partial; resume it, or leave it out with "
                "select(state='complete') or allow_partial=True."
            )
        runs = [r for r in self._runs if r.state == "complete"]
        if not runs:
            raise StoreError(f"no complete run to open in {str(self.folder)!r}.")
        return join_runs(runs, group, variables=variables, join=join)


def open_runs(folder: str | Path = "stores") -> Catalogue:
    """The runs of a folder, complete and partial.

    A run that a stranger made, or a disk damaged, costs the list nothing: it is there with the state
    ``damaged`` and the reason.

    Parameters
    ----------
    folder : str or Path
        Only the root attrs of each run are read: 1,000 runs take some 20 ms.

    Returns
    -------
    Catalogue

    Raises
    ------
    StoreError
        If the folder does not exist or cannot be read.
    """
    folder = Path(folder)
    try:
        with os.scandir(folder) as entries:
            kinds = {e.name: None if e.is_symlink() else e.is_dir() for e in entries}
    except FileNotFoundError as e:
        raise StoreError(
            f"there is no folder {quoted(folder)}; give the folder of your runs with --stores."
        ) from e
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise StoreError(f"cannot read the folder {quoted(folder)} ({reason}).") from e
    found: dict[str, Run] = {}
    for entry in sorted(kinds):
        name = entry.removesuffix(".partial").removesuffix(".zarr")
        state = {f"{name}.zarr": "complete", f"{name}.zarr.partial": "partial"}.get(entry)
        # scratch of a run killed just after it was renamed into place is not a second run
        if state is None or name in found or entry.startswith("."):
            continue
        path = folder / entry
        if not (kinds[entry] or (kinds[entry] is None and kind_at(path) == "folder")):
            continue
        run = _run(name, path, state)
        if run.state == "complete" and "fingerprint" not in run.attrs:
            continue  # somebody else's zarr
        found[name] = run
    return Catalogue([found[n] for n in sorted(found)], folder)


def find_run(path: str | Path) -> Run:
    """One run by its path, with or without ``.zarr``.

    Raises
    ------
    StoreError
        If there is none.
    """
    folder = locate(path)
    state = "partial" if folder.name.endswith(".partial") else "complete"
    return _run(run_name(folder), folder, state)


def _run(name: str, path: Path, state: str) -> Run:
    """A run as its root says it is."""
    attrs, reason = root_attrs(path)
    ours = "fingerprint" in attrs or kind_at(path / MANIFEST) == "file"
    if not reason and ours:
        reason = unlike(attrs)
        if not reason and "fingerprint" not in attrs:
            reason = f"{NODE} says nothing of where the run comes from"
    elif reason and not ours and not os.path.lexists(path / NODE):
        reason = ""  # an empty folder is a run that was killed at once, or somebody else's
    if reason:
        return Run(name, path, "damaged", {}, reason=reason)
    return Run(name, path, state, attrs)


def _cell(value: Any) -> str:
    text = one_line(str(value))
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _flatten(attrs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in attrs.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _meets(value: Any, condition: Any) -> bool:
    if callable(condition):
        return bool(condition(value))
    if isinstance(condition, Collection) and not isinstance(condition, str):
        return any(value == one for one in condition) or bool(value == condition)
    return bool(value == condition)
