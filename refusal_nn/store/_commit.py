"""From result groups to a finished run: written aside, hashed, renamed into place in one step."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store import manifest
from refusal_nn.store._attrs import plain
from refusal_nn.store._names import run_name
from refusal_nn.store._partial import REQUEST
from refusal_nn.store._reading import BEGIN_AGAIN, reading
from refusal_nn.store._write import (
    as_objects,
    consolidate,
    create_group,
    link_stage,
    read_stage,
    write_dataset,
)
from refusal_nn.store.provenance import REQUIRED, RESERVED, require_public
from refusal_nn.store.variables import annotate

_DRAFT = ".commit"
_GROUP_NAME = re.compile(r"[A-Za-z][\w-]*(/[A-Za-z][\w-]*)*")


def checked_groups(
    groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]
) -> dict[str, xr.Dataset]:
    """Result groups by plain name, ``"/"`` first and always there, annotated and with public attrs.

    Parameters
    ----------
    groups : mapping
        Dataset by group name; ``"/"`` is the root.
    attrs : mapping
        Attrs of the root, beside its Dataset's own.

    Raises
    ------
    StoreError
        If a variable breaks the registry, or an attr is private or not JSON.
    """
    checked: dict[str, xr.Dataset] = {"/": xr.Dataset()}
    for name, ds in groups.items():
        key = name.strip("/")
        if key and not _GROUP_NAME.fullmatch(key):
            raise StoreError(
                f"group name {name!r} must be letters, digits, '_' and '-', levels split by '/'."
            )
        label = f"attrs of group {key or '/'!r}"
        ds = annotate(as_objects(ds))
        ds.attrs = plain(_own_attrs(ds.attrs), where=label)
        require_public(ds.attrs, where=label)
        for variable in ds.variables:
            require_public(plain(ds[variable].attrs), where=f"attrs of {variable!r}")
        checked[key or "/"] = ds
    root = checked["/"]
    clashing = [k for k, v in attrs.items() if k in root.attrs and root.attrs[k] != plain(v)]
    if clashing:
        raise StoreError(f"root attrs {', '.join(clashing)} are given twice with other values.")
    root.attrs = {**root.attrs, **plain(dict(attrs))}
    require_public(root.attrs, where="root attrs")
    return checked


def as_tree(checked: Mapping[str, xr.Dataset]) -> xr.DataTree:
    """Groups as one tree.

    Raises
    ------
    StoreError
        If a group has other labels than its parent on a dim of the same name.
    """
    try:
        return xr.DataTree.from_dict(dict(checked))
    except ValueError as e:
        reason = " ".join(str(e).split("\n")[0].split())
        raise StoreError(
            f"groups disagree on a dim they share, so no reader could open the run as a tree "
            f"({reason}); put them in groups of which neither contains the other."
        ) from e


def commit_run(
    path: Path,
    partial: Path,
    groups: Mapping[str, xr.Dataset],
    attrs: Mapping[str, Any],
    *,
    root: Mapping[str, Any],
    keep: Iterable[str] = (),
) -> None:
    """Write the finished run inside `partial` and rename it to `path`.

    Killed before the rename, the stages are untouched and a resumed run writes the result again;
    killed after it, only scratch is left.

    Parameters
    ----------
    path, partial : Path
        Final and partial directory.
    groups, attrs
        As for :func:`checked_groups`.
    root : mapping
        Provenance and marks of the run; results may not change them.
    keep : iterable of str
        Stages to link in as groups.
    """
    with reading(run_name(path), BEGIN_AGAIN):
        kept = {name: read_stage(partial / name, load=False) for name in keep}
    repeated = sorted(set(kept) & {g.strip("/") for g in groups})
    if repeated:
        raise StoreError(f"group {repeated[0]!r} is both a kept stage and a result; rename one.")
    checked = checked_groups({**groups, **kept}, attrs)
    as_tree(checked)
    given = checked["/"].attrs
    changed = [k for k, v in given.items() if k in RESERVED or (k in root and root[k] != v)]
    if changed:
        raise StoreError(
            f"result attrs {', '.join(sorted(changed))} would replace provenance; rename them."
        )
    draft = partial / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    # parents before children; each group carries all its labels, so it can be opened alone
    write_dataset(draft, checked.pop("/"), {**root, **given}, stages=partial)
    for name, ds in sorted(checked.items()):
        for above in [*Path(name).parents][-2::-1]:
            if not (draft / above / "zarr.json").exists():
                create_group(draft / above, {})
        if name in kept:
            link_stage(partial / name, draft / name, kept[name])
        else:
            write_dataset(draft / name, ds, stages=partial)
    if (partial / REQUEST).is_file():
        shutil.copyfile(partial / REQUEST, draft / REQUEST)
    consolidate(draft)
    manifest.write(draft)
    draft.rename(path)
    shutil.rmtree(partial, ignore_errors=True)


def _own_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attrs of a group, less those that describe the run its data were read from."""
    if "fingerprint" not in attrs:
        return dict(attrs)
    return {k: v for k, v in attrs.items() if k not in (*RESERVED, *REQUIRED, "inputs")}
