"""What a server says of a failed job, as one sentence with our own file and line and the fix."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING

from refusal_nn.errors import (
    BackendError,
    PreflightError,
    TooMuchAtOnceError,
    UnavailableError,
)

if TYPE_CHECKING:
    from refusal_nn.backends.ndif._backend import Ndif

_FRAME = re.compile(r'^\s*File "(?:\[[^\]]*\] )?(?P<path>[^"]+)", line (?P<line>\d+)', re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last)"
_PASSING = (
    "try again later",
    "was cancelled or preempted",
    "evicted",
    "re-sending it usually resolves",
)
_NOT_OURS = re.compile(
    r"(?:^|/)(?:site-packages|dist-packages)/|/lib(?:64)?/python3[^/]*/|^<frozen"
    # nnsight's own modules where it is not installed but checked out; a folder of that name is anyone's
    r"|(?:^|/)nnsight/(?:intervention|tracing|modeling|schema)/"
)


class TooMuchError(BackendError, TooMuchAtOnceError):
    """A job needed more time or memory than the server gives it; its halves may pass."""


def failure_of(backend: Ndif, said: str) -> Exception:
    """The exception that a failed job means.

    Parameters
    ----------
    backend : Ndif
    said : str
        The server's message: a sentence, or a traceback where the job's own code failed.

    Returns
    -------
    Exception
        :class:`UnavailableError` where the same job may succeed when sent again.
    """
    said = backend.service.scrub(said).strip()
    if _TRACEBACK in said:
        return _raised(said)
    line = " ".join(said.split())
    if "ModuleNotFoundError" in line and "could not be read" in line:
        return PreflightError(
            f"the server cannot read the job, because it refers to a package that it does not have: "
            f"{_within(line)}; call nnsight.register(package) first, or pass the values instead."
        )
    if "architecture on this server" in line or "could not be read" in line:
        return BackendError(
            f"the server cannot read the job: {_sentence(line)}; its package versions differ from "
            "yours where it matters: compare them with `refusal-nn remote status`."
        )
    if line.startswith("Could not deploy"):
        reason = line.partition(". ")[2] or line
        return BackendError(
            f"the server has not deployed {backend.repo!r} and cannot: {_sentence(reason)}; choose a "
            "deployed model (`refusal-nn remote status`) or ask its operator."
        )
    if "execution timeout" in line:
        return TooMuchError(
            f"a job of one batch took longer than the server allows: {_sentence(line)}; pass a smaller "
            "--batch-size."
        )
    kind = UnavailableError if any(word in line.lower() for word in _PASSING) else BackendError
    return kind(f"the server failed the job: {_sentence(line)}.")


def _raised(said: str) -> Exception:
    """An exception inside the job: what it says, and the last place that is not the server's."""
    last = _cause(said)
    if "OutOfMemoryError" in last or "out of memory" in last.lower():
        return TooMuchError(
            f"the server ran out of memory in a job of one batch ({last[:200]}); pass a smaller "
            "--batch-size."
        )
    frames = [(m["path"].replace("\\", "/"), m["line"]) for m in _FRAME.finditer(said)]
    own = [frame for frame in frames if not _NOT_OURS.search(frame[0])]
    where = f" at {_short(own[-1][0])}:{own[-1][1]}" if own else ""
    return BackendError(f"the job failed on the server{where}: {last[:500]}")


def _cause(said: str) -> str:
    """The exception of a traceback: all that follows its last frame, which may be several lines."""
    lines = said.splitlines()
    frames = [i for i, line in enumerate(lines) if _FRAME.match(line)]
    after = lines[frames[-1] + 1 :] if frames else lines
    first = next((i for i, line in enumerate(after) if line.strip() and not line[0].isspace()), 0)
    return " ".join(" ".join(after[first:]).split())


def _short(path: str) -> str:
    """A path free of this machine's folders: from the package on, or the file's name."""
    parts = PurePath(path).parts
    if "refusal_nn" in parts:
        return "/".join(parts[len(parts) - 1 - parts[::-1].index("refusal_nn") :])
    return parts[-1] if parts else path


def _within(line: str) -> str:
    found = re.search(r"\((ModuleNotFoundError: [^)]*)\)", line)
    return found[1] if found else line[:300]


def _sentence(line: str) -> str:
    return line[:400].rstrip(". ")
