"""Names of runs: what can be one, and where a run of a name lies."""

from __future__ import annotations

import os
from pathlib import Path

from refusal_nn._files import quoted
from refusal_nn.errors import StoreError

_MOST_BYTES = 255 - len(".") - len("..zarr.partial-0000000000")
"""Of a name: file systems hold 255 bytes, and the folder a run is begun in has the longest one."""
_MOST_OF_PATH = 4096 - 512
"""Bytes of a path to a run, which has files inside."""


def run_name(folder: str | Path) -> str:
    """Name of the run in a directory: without folder and endings."""
    return Path(folder).name.removesuffix(".partial").removesuffix(".zarr")


def run_path(stores: str | Path, name: str | Path) -> Path:
    """Where a run is that a person named: by its name in the folder of runs, or by its path.

    Raises
    ------
    StoreError
        If it can be neither.
    """
    check_name(name)
    given = Path(name)
    path = given if len(given.parts) > 1 else Path(stores) / given
    check_name(path)
    return path


def check_name(path: str | Path) -> None:
    """Refuse what cannot be the name or path of a run, before anything is looked for or made.

    Raises
    ------
    StoreError
        If it names no entry of a folder (``.``, ``..``, ``/``), holds a NUL byte or is too long.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise StoreError(f"{quoted(text)} holds a NUL byte, so it cannot be the name of a run.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as e:
        raise StoreError(f"{quoted(text)} is not Unicode, so it cannot name a run.") from e
    last, name = Path(text).name, run_name(text)
    # of "a/.." and "a/." the last part is not a run of the folder a
    if name in ("", ".", "..") or last in ("", ".", "..") or text.rstrip("/").endswith("/."):
        raise StoreError(
            f"{quoted(text)} is not the name of a run; give a name that `refusal-nn runs list` shows."
        )
    if len(os.fsencode(name)) > _MOST_BYTES:
        raise StoreError(
            f"the name {quoted(name)} is too long for a run ({len(os.fsencode(name))} bytes, at most "
            f"{_MOST_BYTES}); give a shorter --name."
        )
    if len(os.fsencode(Path(text).absolute())) > _MOST_OF_PATH:
        raise StoreError(
            f"the path {quoted(text)} is too long for a run; choose another folder with --stores."
        )
