"""The results of the long tests: one sorted JSON document that several runs may write at once."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import TypedDict


class Entry(TypedDict):
    """What a long test came to when it was last run."""

    commit: str
    n: int
    outcome: str
    seconds: float
    seed: int


def read(file: Path) -> dict[str, Entry]:
    """Entries by the id of their test; none without a file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write(file: Path, test: str, entry: Entry) -> None:
    """Add or replace one entry, keeping what others have written meanwhile."""
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        entries = {**read(file), test: entry}
        new = file.with_suffix(f".{os.getpid()}.new")
        text = json.dumps(entries, indent=1, sort_keys=True, ensure_ascii=False)
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(file)
    finally:
        os.close(folder)


def changes(file: Path) -> str:
    """What is not committed, beside the results themselves; a result is that of a commit."""
    return _git(file.parent, "status", "--porcelain", "--", ":/", f":(exclude){file}").stdout


def commit(file: Path) -> str:
    """The commit that is checked out."""
    return _git(file.parent, "rev-parse", "HEAD").stdout.strip()


@cache
def same(file: Path, one: str, other: str) -> bool:
    """Whether two commits differ in nothing but the results."""
    found = _git(file.parent, "diff", "--quiet", one, other, "--", ":/", f":(exclude){file}")
    return found.returncode == 0


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
