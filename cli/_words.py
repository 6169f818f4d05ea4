"""Words of a command line that no option or argument has a use for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from refusal_nn._files import is_unicode


def check_words(words: Sequence[str]) -> None:
    """Refuse words that hold a NUL byte, are not UTF-8, or are empty.

    Raises
    ------
    click.UsageError
    """
    for number, word in enumerate(words, start=1):
        if (wrong := fault(word)) is not None:
            raise click.UsageError(f"word {number} of the command {wrong}; give it without.")
        named = words[number - 2 : number - 1] == ["--name"]  # which says what a name is
        if (not word and not named) or re.fullmatch(r"--[\w-]+=", word):
            raise click.UsageError(
                f"word {number} of the command, {word!r}, is empty; give a value or leave it out."
            )


def fault(word: str) -> str | None:
    """What makes a text unfit for a name, a path or a record; None if nothing does."""
    if "\0" in word:
        return "holds a NUL byte"
    if not is_unicode(word):
        return "is not UTF-8"
    return None
