"""Errors of the file system as one sentence with the fix."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refusal_nn.errors import StoreError, WorkError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate an OSError raised while `path` is written.

    Raises
    ------
    WorkError
        If the disk is full or failed.
    StoreError
        If the folder cannot be written or something else is in the way.
    """
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            raise WorkError(
                f"the disk is full while writing {path.name!r} in {str(path.parent)!r}; free some "
                "space and resume: finished batches are kept."
            ) from e
        if e.errno in _DENIED:
            raise StoreError(
                f"cannot write to {str(path.parent)!r} ({e.strerror}); "
                "choose another folder with --stores."
            ) from e
        if e.errno in _IN_THE_WAY:
            raise StoreError(
                f"cannot make {str(path)!r}: a file is in the way ({e.filename}); "
                "move it or choose another folder with --stores."
            ) from e
        if e.errno == errno.ENAMETOOLONG:
            raise StoreError(f"the name {path.name!r} is too long; give a shorter --name.") from e
        raise WorkError(f"cannot write {str(path)!r}: {e}.") from e


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that becomes `path` in one step, once it is whole and on the disk.

    A reader sees the old content or the new, never a part; what fails leaves nothing behind.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file; see :func:`replacing`."""
    with replacing(path) as draft:
        draft.write_bytes(data)
