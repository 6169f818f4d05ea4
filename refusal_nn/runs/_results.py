"""Results of analyses, in memory or on disk, as what the next analysis goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from refusal_nn import store
from refusal_nn._files import kind_at
from refusal_nn.errors import RequestError
from refusal_nn.runs._used import USED
from refusal_nn.store._reading import reading
from refusal_nn.store._write import load_small

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.store import Run

IDENTITY = (
    *("model", "revision", "weights_hash", "tokenizer_hash", "template_hash"),
    *("dtype", "device", "backend"),
)
"""Attrs that say which model made a result and where, in the order of :meth:`Model.identity`."""

SAME_MODEL = ("model", "weights_hash", "tokenizer_hash", "template_hash")
"""Attrs in which two results of one model agree; device, dtype and backend may differ."""


@dataclass(frozen=True)
class Result:
    """A result that an analysis is made from.

    Attributes
    ----------
    name : str
        Of the run; of a result in memory the analysis that made it.
    tree : xarray.DataTree
    hash : str
        Names the content.
    kept : bool
        Whether it is a run, not what an analysis returned.
    """

    name: str
    tree: xr.DataTree
    hash: str
    kept: bool = False

    @property
    def attrs(self) -> dict[str, Any]:
        """Root attrs."""
        return {str(k): v for k, v in self.tree.attrs.items()}

    def table(self) -> xr.Dataset:
        """The root group, with the prompts used before where the run has a group of them.

        In memory, but for variables too large to be held: who needs those reads them part by part.
        """
        with reading(self.name):
            root = load_small(self.tree.to_dataset())
            if USED in self.tree.children:
                root = root.merge(self.tree[USED].to_dataset().load().drop_attrs())
            return root


def result_of(value: Any, stores: str | Path) -> Result:
    """A run, the name or path of one, or what an analysis returned.

    Raises
    ------
    RequestError
        If it is none of these.
    """
    if isinstance(value, str | Path):
        value = open_run(stores, value)
    if isinstance(value, store.Run):
        return Result(value.name, value.tree, value.hash, kept=True)
    if not isinstance(value, xr.Dataset | xr.DataTree) and hasattr(value, "to_dataset"):
        value = value.to_dataset()
    if not isinstance(value, xr.Dataset | xr.DataTree):
        raise RequestError(
            f"a {type(value).__name__} is no result to go on from; give a run, its name, or what an "
            "analysis returned."
        )
    tree = value if isinstance(value, xr.DataTree) else xr.DataTree(value)
    return Result(str(tree.attrs.get("analysis", "result")), tree, store.content_hash(value))


def open_run(
    stores: str | Path,
    name: str | Path,
    analysis: str | Sequence[str] | None = None,
    *,
    chunks: Mapping[str, int] | str | None = None,
) -> Run:
    """A complete run, by name or path, whose files are as they were when it was made.

    Parameters
    ----------
    stores : str or Path
        Folder of runs, for a plain name.
    name : str or Path
    analysis : str or sequence of str, optional
        What it must be a run of.
    chunks : mapping or str, optional
        As :func:`xarray.open_datatree` takes it, for every way to open the run; lazy arrays without
        dask by default.

    Raises
    ------
    RequestError
        If there is no such run, it is partial, or it is of another analysis.
    VerificationError
        If its files do not match its manifest.
    """
    path = store.run_path(stores, name)
    if kind_at(name) == "folder":
        path = Path(name)
    run = replace(store.find_run(path), chunks=chunks)
    if run.state == "damaged":
        run.require_complete()
    if run.state != "complete":
        raise RequestError(
            f"run {run.name!r} is partial; finish it with `refusal-nn runs resume {run.name}` first."
        )
    run.verify()
    if analysis is not None:
        check_analysis(run.name, run.attrs.get("analysis"), analysis)
    return run


def check_analysis(name: str, found: Any, wanted: str | Sequence[str]) -> None:
    """Refuse a result of another analysis than one is needed of.

    Raises
    ------
    RequestError
    """
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if found not in names:
        raise RequestError(
            f"run {name!r} is a {found} run, but a {' or '.join(names)} run is needed here."
        )


def same_model(name: str, attrs: Mapping[str, Any], model: Model) -> None:
    """Refuse to go on from a result that another model made.

    Parameters
    ----------
    name : str
        What the result is called in the message.
    attrs : mapping
        Its root attrs.
    model : Model

    Raises
    ------
    RequestError
        If name, weights, tokenizer or template differ. Device, dtype and backend may.
    """
    mine = model.identity()
    differing = [key for key in SAME_MODEL if attrs.get(key) != mine[key]]
    if differing:
        raise RequestError(
            f"run {name!r} was made with model {attrs.get('model')!r}, which differs "
            f"from {model.name!r} in {', '.join(differing)}; pass the same --model and "
            "--chat-template."
        )
