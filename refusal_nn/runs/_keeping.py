"""Where and how runs are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_nn._files import quoted
from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.store import Progress

LONGEST_NAME = 200
"""Most characters: the names of a run's folders and drafts are longer, and 255 bytes are allowed."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a run may be called, endings aside."""


@dataclass(frozen=True)
class Keeping:
    """Where and how runs are kept.

    Parameters
    ----------
    stores : str or Path
        Folder of runs.
    name : str, optional
        Name of the run; default ``<noun>-<verb>-<model>-<8 of the fingerprint>``. Letters, digits,
        ``.``, ``_`` and ``-``, beginning with a letter or digit, at most 200 characters.
    command : str
        The command line for provenance, free of machine paths.
    resume : bool
        Insist that the run is there already, complete or partial.
    progress : callable, optional
        ``progress(stage, done, total)``. If it has a ``status``, that is given a line about the jobs
        under way on a server whenever it changes.

    Raises
    ------
    RequestError
        If the name is not one.
    """

    stores: str | Path
    name: str | None = None
    command: str = "python"
    resume: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        # no separators: a run lies in the folder of runs, where `runs list` sees it
        if self.name is not None and (
            not NAME.fullmatch(self.name) or self.name.endswith((".zarr", ".partial"))
        ):
            raise RequestError(
                f"{quoted(self.name)} cannot be the name of a run; use letters, digits, '.', '_' and '-', "
                "beginning with a letter or digit and without .zarr at the end (the folder is "
                "--stores)."
            )
        if self.name is not None and len(self.name) > LONGEST_NAME:
            raise RequestError(
                f"the name {quoted(self.name)} has {len(self.name)} characters; a run's has at most "
                f"{LONGEST_NAME}, so give a shorter --name."
            )
