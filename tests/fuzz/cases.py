"""A case: the words of a command and the files it finds, as plain data that are laid out when it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("arguments", "config", "prompts", "models", "stores")

LARGE = 64 << 20
"""Bytes of a file that is not read here: one of zeros."""

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One command in one world.

    Attributes
    ----------
    kind : str
        One of ``KINDS``.
    argv : tuple of str
        Words after the program's name.
    steps : tuple of tuple
        What :func:`lay_out` does in the working folder, in order.
    """

    kind: str
    argv: tuple[str, ...]
    steps: tuple[Step, ...] = field(default=())


def lay_out(case: Case, work: Path, material: Path) -> None:
    """Make the files of a case; a step that does not fit what is there does nothing."""
    for step in case.steps:
        with contextlib.suppress(Exception):
            _STEPS[step[0]](work, material, *step[1:])


def _copy(work: Path, material: Path, source: str, target: str) -> None:
    origin, made = material / source, work / target
    made.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, made, symlinks=True)
    else:
        shutil.copy(origin, made)


def _write(work: Path, _: Path, target: str, content: str | bytes) -> None:
    made = work / target
    made.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    made.write_bytes(data)


def _found(work: Path, pattern: str, index: int) -> Path:
    """One of the files that a pattern names; the index wraps around."""
    there = sorted(
        p for p in work.glob(pattern) if p.is_file() or p.is_symlink() or "*" not in pattern
    )
    return there[index % len(there)]


def _json(work: Path, _: Path, pattern: str, index: int, place: int, value: Any) -> None:
    """Put a value at one of the places of a JSON document; ``...`` takes the place out."""
    path = _found(work, pattern, index)
    document = json.loads(path.read_bytes())
    places = list(_places(document))
    holder, key = places[place % len(places)]
    if value is ...:
        del holder[key]
    else:
        holder[key] = value
    path.write_text(json.dumps(document), encoding="utf-8")


def _put(work: Path, _: Path, pattern: str, index: int, keys: tuple[str, ...], value: Any) -> None:
    """Put a value under named keys of a JSON document."""
    path = _found(work, pattern, index)
    document = json.loads(path.read_bytes())
    holder = document
    for key in keys[:-1]:
        holder = holder.setdefault(key, {})
    holder[keys[-1]] = value
    path.write_text(json.dumps(document), encoding="utf-8")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _bytes(work: Path, _: Path, pattern: str, index: int, how: str, at: float, new: bytes) -> None:
    path = _found(work, pattern, index)
    old = path.read_bytes()
    i = int(at * len(old))
    path.write_bytes(
        {
            "cut": old[:i],
            "insert": old[:i] + new + old[i:],
            "replace": old[:i] + new + old[i + len(new) :],
            "drop": old[:i] + old[i + len(new) :],
            "append": old + new,
            "front": new + old[len(new) :],
        }[how]
    )


def _text(work: Path, _: Path, pattern: str, index: int, old: str, new: str) -> None:
    path = _found(work, pattern, index)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")


def _instead(work: Path, _: Path, pattern: str, index: int, what: str, value: Any = None) -> None:
    """Something else where a file was: nothing, a link, a pipe, a folder, a large file of zeros."""
    path = _found(work, pattern, index)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    _make(work, _, str(path.relative_to(work)), what, value)


def _make(work: Path, _: Path, target: str, what: str, value: Any = None) -> None:
    path = work / target
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "link":
        path.symlink_to(value)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        with path.open("wb") as opened:
            opened.truncate(value)
    elif what == "file":
        path.write_bytes(value)


def _deep(work: Path, _: Path, target: str, n: int, left: str, right: str) -> None:
    _write(work, _, target, left * n + right * n)


def _both(work: Path, _: Path, run: str, index: int, key: str, value: Any) -> None:
    """Put a value into the metadata of an array and into the root's copy of it."""
    root = _found(work, f"{run}/zarr.json", 0)
    path = _found(work, f"{run}/*/**/zarr.json", index)
    name = str(path.parent.relative_to(root.parent))
    for file in (path, root):
        document = json.loads(file.read_bytes())
        whole = document
        if file is root:
            document = document["consolidated_metadata"]["metadata"][name]
        if value is ...:
            del document[key]
        else:
            document[key] = value
        file.write_text(json.dumps(whole), encoding="utf-8")


def _values(
    work: Path, _: Path, run: str, index: int, chunk: int, at: int, odd: dict[str, Any]
) -> None:
    """Put a value into an array, by the array's type."""
    from tests.fuzz.chunks import rewrite

    path = _found(work, f"{run}/*/**/zarr.json", index)
    kind = json.loads(path.read_bytes())["data_type"]
    rewrite(path.parent, chunk, at, odd[kind.rstrip("0123456789")])


def _rehash(work: Path, _: Path, run: str) -> None:
    """Make the manifest that of what is there now, as someone would who sends a run on purpose."""
    from refusal_nn.store import manifest

    root = _found(work, f"{run}/manifest.json", 0).parent
    there = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.name != manifest.NAME
        and stat.S_ISREG((known := path.lstat()).st_mode)
        and known.st_size <= LARGE
    }
    (root / manifest.NAME).write_bytes(manifest._text(there))


def _move(work: Path, _: Path, source: str, target: str) -> None:
    shutil.move(work / source, work / target)


_STEPS: dict[str, Callable[..., None]] = {
    "copy": _copy,
    "write": _write,
    "json": _json,
    "put": _put,
    "bytes": _bytes,
    "text": _text,
    "instead": _instead,
    "make": _make,
    "deep": _deep,
    "both": _both,
    "values": _values,
    "rehash": _rehash,
    "move": _move,
}


def snapshot(folder: Path) -> dict[str, str]:
    """What lies in a folder: kind, and content or goal, by path."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(base, name)  # noqa: PTH118 - names need not be text
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                said = f"link {os.readlink(path)}"  # noqa: PTH115
            elif stat.S_ISREG(mode):
                said = _digest(path)
            else:
                said = f"kind {stat.S_IFMT(mode):o}"
            found[os.path.relpath(path, folder)] = said
    return found


def _digest(path: str) -> str:
    known = os.stat(path)  # noqa: PTH116
    if known.st_size > LARGE:  # sparse: it takes long to read, and nothing writes just there
        return f"{known.st_size} bytes of {known.st_mtime_ns}"
    with open(path, "rb") as opened:  # noqa: PTH123
        return hashlib.sha1(opened.read(), usedforsecurity=False).hexdigest()
