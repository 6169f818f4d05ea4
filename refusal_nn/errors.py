"""The exceptions of this package, and what each means to a caller.

Every message is one or two sentences: the input, what is wrong with it, and what to do. The command
line turns a :class:`RequestError` into exit code 2 and a :class:`WorkError` into exit code 1, in
one place; nothing else maps exceptions to exit codes.
"""

from __future__ import annotations

import re
from typing import ClassVar

# a part between quotes is data, whose semicolons separate nothing
_PART = re.compile(
    r"""(?:(?<!\w)'(?:[^'\\]|\\.)*'(?!\w) | (?<!\w)"(?:[^"\\]|\\.)*"(?!\w) | `[^`]*` | ;(?!\ ) | [^;])+""",
    re.VERBOSE | re.DOTALL,
)


def fix_in(message: str) -> str | None:
    """What to do, from a message of the form "what is wrong; what to do."; None where it says nothing.

    Examples
    --------
    >>> fix_in("there is no run 'a; b' in 'stores'; `refusal-nn runs list` shows those there are.")
    '`refusal-nn runs list` shows those there are.'
    """
    parts = _PART.findall(message)
    return parts[-1].strip() if len(parts) > 1 else None


class RefusalNNError(Exception):
    """Base of every error this package raises on purpose."""

    kind: ClassVar[str] = "work"
    """The word a script can tell this kind of error by; one class has one, and it stays."""

    @property
    def fix(self) -> str | None:
        """The part of the message that says what to do; None where it has none."""
        return fix_in(str(self))


class RequestError(RefusalNNError):
    """The request was wrong: the same call can never succeed (exit code 2)."""

    kind = "request"


class WorkError(RefusalNNError):
    """The request was right but the work failed (exit code 1)."""


class StoreError(RequestError):
    """A store, run name, variable or region is not what it must be."""

    kind = "store"


class PromptError(RequestError):
    """A prompt file or set of prompts is unusable as given."""

    kind = "prompt"


class ModelError(RequestError):
    """A model cannot be loaded, or is not one this package understands."""

    kind = "model"


class InterventionError(RequestError):
    """An intervention does not fit the model it is applied to."""

    kind = "intervention"


class PreflightError(RequestError):
    """A job cannot run where this package is not installed."""

    kind = "preflight"


class BackendError(WorkError):
    """A backend failed to execute a job."""

    kind = "backend"


class UnavailableError(BackendError):
    """A server cannot be reached or is not ready; the same call may succeed later."""

    kind = "unavailable"


class TooMuchAtOnceError(RefusalNNError):
    """A job was too large for where it was sent; less of it may pass. Always one of the others, too."""


class Detached(RefusalNNError):  # noqa: N818 - not an error
    """Jobs are submitted and nobody waits for them: not a failure (exit code 0).

    Attributes
    ----------
    jobs : dict
        Id to the state last heard of.
    run : str
        Name of the run they belong to; empty where it is not kept.
    """

    def __init__(self, host: str, jobs: dict[str, str], run: str = "") -> None:
        self.host = host
        self.jobs = jobs
        self.run = run
        count = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
        states = ", ".join(f"{job} ({state.lower()})" for job, state in jobs.items())
        text = f"{count} under way at {host}: {states}"
        if run:
            text = f"run {run!r}: {text}; collect with `refusal-nn runs resume {run} --host {host}`"
        super().__init__(f"{text}.")


class VerificationError(WorkError):
    """Stored data do not match their manifest."""

    kind = "verification"
