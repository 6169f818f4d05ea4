"""The runs a report is made from: read, recognised, and followed back to what they were made from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xarray as xr

from refusal_nn import store
from refusal_nn._analyses import declared, targets
from refusal_nn.errors import RequestError
from refusal_nn.runs import Run, open_run
from refusal_nn.store._write import as_objects


@dataclass(frozen=True)
class Source:
    """One run, in memory.

    Attributes
    ----------
    name : str
    kind : str
        Name of the analysis that made it.
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
        given = self.data.attrs.get("inputs")
        return {
            str(i["run"]): str(i["hash"])
            for i in (given if isinstance(given, list | tuple) else ())
            if isinstance(i, dict) and {"run", "hash"} <= i.keys()
        }


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
    waiting = deque(open_run(stores, run) for run in runs)
    while waiting:
        opened = waiting.popleft()
        if opened.name in found:
            continue
        found[opened.name] = _open(opened)
        for name, digest in found[opened.name].inputs.items() if follow else ():
            if name != Path(name).name or "\0" in name:
                continue  # a run names its neighbours, never a folder elsewhere
            path = opened.path.parent / f"{name}.zarr"
            if path.is_dir() and store.run_hash(path) == digest:
                waiting.append(open_run(stores, path))
    return in_order(found.values())


def from_results(results: xr.Dataset | xr.DataTree, *, name: str | None = None) -> Source:
    """A result in memory as a source.

    Raises
    ------
    RequestError
        If it is of a kind that reports do not know.
    """
    tree = results if isinstance(results, xr.DataTree) else xr.DataTree(results)
    root = as_objects(tree.to_dataset())
    name = name or str(root.attrs.get("name") or root.attrs.get("analysis") or "results")
    groups = {k: as_objects(node.to_dataset()) for k, node in tree.children.items()}
    kind = _kind(root, name)
    if kind.endswith("-evaluate") and "completion" in root and "rates" not in groups:
        raise RequestError(
            f"run {name!r} holds completions but no group 'rates'; give the whole result of "
            "evaluate, or make the group with refusal_nn.responses.rates."
        )
    return Source(name, kind, root, groups)


def _open(run: Run) -> Source:
    return replace(from_results(run.load(), name=run.name), hash=run.hash)


def _kind(data: xr.Dataset, name: str) -> str:
    """The analysis that made a result, by what it says itself."""
    kind = str(data.attrs.get("analysis", ""))
    known = targets()
    if kind not in known or not declared(kind).section:
        said = f"is a {kind} run" if kind else "does not say which analysis made it"
        held = ", ".join(map(str, data)) or "nothing"
        raise RequestError(
            f"run {name!r} {said}, which is of no kind that a report can show (it holds {held}); "
            f"give runs of {', '.join(filter(_has_section, known))}."
        )
    return kind


def _has_section(kind: str) -> bool:
    """Whether an analysis has a part of a report; one of a broken package has none."""
    try:
        return bool(declared(kind).section)
    except RequestError:
        return False


def in_order(sources: Iterable[Source]) -> list[Source]:
    """Sources in the order of a study."""
    order = list(targets())
    return sorted(sources, key=lambda s: order.index(s.kind))


@dataclass(frozen=True)
class Study:
    """Runs that belong together, at most one of an analysis.

    Attributes
    ----------
    sources : list of Source
    repeated : set of (str, str)
        Analyses and models that the report has several runs of.
    """

    sources: list[Source]
    repeated: set[tuple[str, str]] = field(default_factory=set)

    def get(self, kind: str) -> Source | None:
        """The run of an analysis."""
        return next((s for s in self.sources if s.kind == kind), None)

    def name_of(self, source: Source | None) -> str:
        """Name of a run where it is needed to tell it from others; else empty."""
        several = source is not None and (source.kind, source.model) in self.repeated
        return source.name if source is not None and several else ""
