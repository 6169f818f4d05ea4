"""The folder of a run that may be a stranger's, looked through before anything in it is used.

Nothing outside the folder is reached: links are refused, not followed. Only plain files count, and
of what zarr would read nothing is left that it could be led astray with.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refusal_nn._files import MAX_DEPTH, check_plain, is_unicode, parse_json, quoted, read_bytes
from refusal_nn.errors import StoreError
from refusal_nn.store._names import run_name
from refusal_nn.store._nodes import (
    Array,
    UnsoundError,
    check_dims,
    checked,
    consolidated,
    decompressed,
)
from refusal_nn.store.provenance import unlike

NODE = "zarr.json"

NODE_BYTES = 64 << 20
"""Of a node's metadata; the root's of a run of 10,000 variables have 15 MB."""
_ALL_NODES_BYTES = 128 << 20
"""Of the metadata of all nodes: it is the time to parse them that is bounded."""
_FILE_BYTES = 2 << 30
_MOST_FILES = 2_000_000
_MOST_FOLDERS_DEEP = 48


def inspect(folder: Path) -> None:
    """Look through a run, complete or partial.

    Raises
    ------
    StoreError
        If a file or folder in it is none that a run has: names it and says why.
    """
    name, partial = run_name(folder), folder.name.endswith(".partial")
    try:
        if partial and folder.is_symlink():
            raise UnsoundError("the folder itself is a link, and a run is not written through one")
        _check(folder, partial=partial)
    except UnsoundError as e:
        raise StoreError(refusal(name, str(e))) from e
    except StoreError as e:
        raise StoreError(refusal(name, str(e).rstrip("."))) from e
    except OSError as e:
        raise StoreError(refusal(name, f"{e.strerror}: {quoted(e.filename or folder)}")) from e
    except MemoryError as e:
        raise StoreError(refusal(name, "looking through it takes more memory than there is")) from e


def refusal(name: str, reason: str) -> str:
    """The sentence about a run that is not used."""
    return (
        f"run {name!r} cannot be used: {reason}; get it anew from where it came from, or remove it "
        f"with `refusal-nn runs rm {name}`."
    )


def files(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file of a folder by its path in it, sorted, none of them reached through a link.

    Raises
    ------
    UnsoundError
        If there is a link, a device, a pipe or a socket, or more or larger files than any run has.
    """
    waiting = [("", os.fspath(folder))]
    count = 0
    while waiting:
        at, path = waiting.pop()
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        if at.count("/") > _MOST_FOLDERS_DEEP:
            raise UnsoundError("its folders are nested too deeply")
        count += len(entries)
        if count > _MOST_FILES:
            raise UnsoundError(f"it holds more than {_MOST_FILES} files")
        for entry in entries:
            inner = f"{at}{entry.name}"
            if not is_unicode(entry.name):
                raise UnsoundError(f"the name {quoted(inner)} is not UTF-8")
            if entry.is_symlink():
                raise UnsoundError(f"{quoted(inner)} is a link, and a run holds none")
            if entry.is_dir(follow_symlinks=False):
                waiting.append((f"{inner}/", entry.path))
            elif entry.is_file(follow_symlinks=False):
                # a sparse file takes no room where it lies, and hours to hash
                if entry.stat(follow_symlinks=False).st_size > _FILE_BYTES:
                    raise UnsoundError(f"{quoted(inner)} is larger than any file of a run")
                yield inner, entry
            else:
                raise UnsoundError(f"{quoted(inner)} is no plain file")


def own_bytes(path: Path, *, limit: int = NODE_BYTES, what: str = "file") -> bytes:
    """The content of a file of a run, which is not a link.

    Raises
    ------
    StoreError
        As :func:`refusal_nn._files.read_bytes`.
    """
    try:
        linked = stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        linked = False  # said better by who reads it
    if linked:
        raise StoreError(f"{what} {quoted(path)} is a link, and a run holds none.")
    return read_bytes(path, what=what, limit=limit, error=StoreError)


def own_json(path: Path, *, of: str = "", limit: int = NODE_BYTES) -> Any:
    """The value of a JSON file of a run, whose name is for the message.

    Raises
    ------
    StoreError
        If there is none, or it is too large, too deep or not JSON.
    """
    what = f"{path.name} of run {of!r}" if of else path.name
    return parse_json(own_bytes(path, limit=limit, what=what), what=what, error=StoreError)


def root_attrs(folder: Path) -> tuple[dict[str, Any], str]:
    """Attrs of a group straight from its ``zarr.json``, and why there are none to be had.

    Of the rest of the file nothing is looked at: a thousand runs are listed by these alone.
    """
    path = folder / NODE
    try:
        node = _parsed(own_bytes(path))
        attrs = node.get("attributes") if isinstance(node, dict) else None
        if not isinstance(attrs, dict):
            raise StoreError(f"{NODE} holds no attributes.")
        check_plain(attrs, what=NODE, error=StoreError)
    except StoreError as e:
        return {}, str(e).rstrip(".")
    except MemoryError:
        return {}, f"{NODE} takes more memory than there is"
    # "coordinates" is xarray's note of which arrays are labels, which it hides too
    return {k: v for k, v in attrs.items() if k != "coordinates"}, ""


def _parsed(content: bytes) -> Any:
    """The document, as deep as it is: looking at all of it would cost most of the time of a list."""
    try:
        return json.loads(content)
    except RecursionError as e:
        raise StoreError(f"{NODE} is nested too deeply (more than {MAX_DEPTH} levels).") from e
    except ValueError as e:
        raise StoreError(f"{NODE} is not JSON ({str(e).partition(';')[0]}).") from e


def _check(folder: Path, *, partial: bool) -> None:
    found = dict(files(folder))
    if partial:  # what was being written when a run was killed is written anew
        found = {path: entry for path, entry in found.items() if not path.startswith(".")}
    at = {p.removesuffix(NODE).rstrip("/"): p for p in found if f"/{p}".endswith(f"/{NODE}")}
    if "" not in at:
        raise UnsoundError(f"{NODE} is missing")
    total = sum(found[path].stat(follow_symlinks=False).st_size for path in at.values())
    if total > _ALL_NODES_BYTES:
        raise UnsoundError(f"its metadata have {total:,} bytes, more than those of any run")
    root = own_json(folder / NODE)
    nodes = {"": _node(NODE, root, "", root=True)}
    named = None if partial else _consolidated(root)
    # what one says and not the other is not parsed
    if named is not None and (others := set(named) ^ (set(at) - {""})):
        raise _disagreement(min(others))
    if wrong := unlike(root_attrs(folder)[0]):
        raise UnsoundError(wrong)
    for inside in sorted(set(at) - {""}):
        node = own_json(Path(found[at[inside]].path))
        nodes[inside] = _node(at[inside], node, inside, root=False)
        if named is not None and named[inside] != nodes[inside]:
            raise _disagreement(inside)
    arrays = {path: array for path, array in nodes.items() if array is not None}
    check_dims(arrays)
    chunks = dict.fromkeys(arrays, 0)
    for path, entry in found.items():
        array_path, key = _chunk_of(path, arrays)
        if array_path is not None and arrays[array_path].is_chunk(key):
            size = entry.stat(follow_symlinks=False).st_size
            _check_chunk(arrays[array_path], path, entry.path, size)
            chunks[array_path] += 1
    for path, array in arrays.items() if not partial else ():
        if chunks[path] != math.prod(array.grid):
            raise UnsoundError(
                f"variable {quoted(path)} has {math.prod(array.grid)} chunks, and {chunks[path]} are "
                "there"
            )


def _disagreement(path: str) -> UnsoundError:
    return UnsoundError(f"{NODE} of the run and of {quoted(path)} do not agree")


def _consolidated(root: dict[str, Any]) -> dict[str, Array | None]:
    try:
        found = consolidated(root)
    except UnsoundError as e:
        raise UnsoundError(f"{NODE} {e}") from e
    return {path: _node(f"{NODE}: {path}", node, path, root=False) for path, node in found.items()}


def _node(path: str, node: Any, inside: str, *, root: bool) -> Array | None:
    try:
        found = checked(node, inside.rpartition("/")[2])
        if not root and (node.get("consolidated_metadata") or {}).get("metadata"):
            raise UnsoundError("has consolidated metadata, which only the root of a run has")
    except UnsoundError as e:
        raise UnsoundError(f"{quoted(path)} {e}") from e
    return found


def _chunk_of(path: str, arrays: Mapping[str, Array]) -> tuple[str | None, str]:
    """The array that a file may be a chunk of, and its path below the folder of the chunks."""
    at = path.find("/c")
    while at >= 0:
        if path[:at] in arrays and path[at + 2 : at + 3] in ("", "/"):
            return path[:at], path[at + 3 :]
        at = path.find("/c", at + 1)
    return None, ""


def _check_chunk(array: Array, path: str, where: str, size: int) -> None:
    try:
        if {"zstd", "blosc"}.isdisjoint(array.codecs):
            array.check_chunk(b"", size)
        else:
            with Path(where).open("rb") as file:
                array.check_chunk(file.read(18), size)
        if array.kind == "string":
            content = Path(where).read_bytes()[:-4]
            array.check_text(decompressed(content, array.codecs))
    except UnsoundError as e:
        raise UnsoundError(f"{quoted(path)} {e}") from e
