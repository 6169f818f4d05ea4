"""Files that people name or send: read whole, within limits, and only where they are plain files.

What is in them is data. Nothing here runs, imports or follows anything that a file says.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from refusal_nn.errors import RequestError

MAX_BYTES = 256 << 20
"""Most bytes of a text file that is read whole."""

MAX_DEPTH = 64
"""Most levels of nesting in a document; ours have fewer than ten."""


def read_bytes(
    path: str | os.PathLike[str],
    *,
    what: str = "file",
    limit: int = MAX_BYTES,
    error: type[RequestError] = RequestError,
) -> bytes:
    """The content of a plain file.

    Parameters
    ----------
    path : str or path
    what : str
        What the file is, for messages: ``"config file"``.
    limit : int
        Most bytes it may have.
    error : type
        Raised with one sentence that names the file.

    Raises
    ------
    RequestError
        If it is missing, no plain file (a folder, a device, a pipe), too large or unreadable; of the
        type asked for.
    """
    name = quoted(path)
    try:
        # without waiting: opening a pipe that nobody writes to would hang
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as found:  # a NUL byte
        raise error(f"{what} {name} cannot be read: the name holds a NUL byte.") from found
    except OSError as found:
        raise error(f"{what} {name} cannot be read: {found.strerror}.") from found
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode):
        os.close(number)
        raise error(f"{what} {name} is {_kind(about.st_mode)}, not a plain file; give a file.")
    with os.fdopen(number, "rb") as opened:
        try:
            # room is made for what is asked for, so a small file is not asked for its limit
            content = opened.read(min(about.st_size, limit) + 1)
            if (
                about.st_size < len(content) <= limit
            ):  # it says less than it holds, as those of /proc
                content += opened.read(limit + 1 - len(content))
        except OSError as found:
            raise error(f"{what} {name} cannot be read: {found.strerror}.") from found
    if len(content) > limit:
        raise error(f"{what} {name} is larger than {_size(limit)}, the most that is read of one.")
    return content


def read_text(
    path: str | os.PathLike[str],
    *,
    what: str = "file",
    limit: int = MAX_BYTES,
    error: type[RequestError] = RequestError,
) -> str:
    """The text of a plain UTF-8 file, without a byte order mark; parameters as :func:`read_bytes`.

    Raises
    ------
    RequestError
        As :func:`read_bytes`, or if it is not UTF-8.
    """
    content = read_bytes(path, what=what, limit=limit, error=error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(
            f"{what} {quoted(path)} is not UTF-8 (byte {found.start}); save it as UTF-8."
        ) from found


def parse_json(
    content: str | bytes,
    *,
    what: str,
    depth: int = MAX_DEPTH,
    error: type[RequestError] = RequestError,
) -> Any:
    """The value of a JSON document.

    Parameters
    ----------
    content : str or bytes
    what : str
        What the document is, for messages: ``"config file 'a.json'"``.
    depth : int
        Most levels of lists and objects in one another.
    error : type
        Raised with one sentence.

    Raises
    ------
    RequestError
        If it is not JSON, nested more deeply, or holds text that is not Unicode; of the type asked
        for.
    """
    try:
        value = json.loads(content)
    except json.JSONDecodeError as found:
        raise error(f"{what} is not JSON (line {found.lineno}: {found.msg}).") from found
    except ValueError as found:  # not UTF-8, or a number of thousands of digits
        raise error(f"{what} is not JSON ({str(found).partition(';')[0]}).") from found
    except RecursionError as found:
        raise error(f"{what} is nested too deeply (more than {depth} levels).") from found
    check_plain(value, what=what, depth=depth, error=error)
    return value


def check_plain(
    value: Any, *, what: str, depth: int = MAX_DEPTH, error: type[RequestError] = RequestError
) -> None:
    """Refuse plain data that are nested too deeply, or hold text that cannot be written.

    Raises
    ------
    RequestError
        Of the type asked for.
    """
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not is_unicode(item):
                    raise error(
                        f"{what} holds text that is not Unicode (half of a surrogate pair)."
                    )
            elif isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                inner += item
        level = inner
    if level:
        raise error(f"{what} is nested too deeply (more than {depth} levels).")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair.

    Names of files that are not UTF-8 come as such halves.
    """
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def quoted(path: str | os.PathLike[str]) -> str:
    """A path for a message, cut in the middle where it is too long to read."""
    text = os.fspath(path)
    return repr(text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}")


def kind_at(path: str | os.PathLike[str]) -> str:
    """``"file"``, ``"folder"`` or ``"other"`` at a path, links followed; empty where nothing can be."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):  # not there, not to be seen, too long, a NUL byte
        return ""
    return {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}.get(stat.S_IFMT(mode), "other")


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a model or data set of the hub, ``owner/name``.

    Examples
    --------
    >>> is_hub_id("org/model-7b"), is_hub_id("http://org/model"), is_hub_id("../model")
    (True, False, False)
    """
    owner, _, rest = name.partition("/")
    return (
        len(name) <= 193
        and all(
            re.fullmatch(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", p, re.A) for p in (owner, rest)
        )
        and not any(pair in name for pair in ("..", "--"))
        and not name.endswith(".git")
    )


def inside(path: Path, folder: Path) -> bool:
    """Whether a path, every link in it followed, lies in a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL byte
        return False


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return kind
    return "a device"


def _size(n: int) -> str:
    return f"{n >> 20} MiB" if n >= 1 << 20 else f"{n >> 10} KiB"
