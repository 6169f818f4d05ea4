"""The labels a prompt carries, and how two prompts are told apart."""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from collections.abc import Iterable
from itertools import islice
from numbers import Number

import numpy as np

from refusal_nn.errors import PromptError

COLUMNS = ("text", "category", "harm", "style", "split", "source", "family")
"""Columns of a prompt set, in the order they are written."""

HARM_OF = {"toxic": "harmful", "hard": "harmless", "safe": "harmless"}
"""What each style implies: *hard* prompts are harmless but look harmful."""

VOCABULARY: dict[str, tuple[str, ...]] = {
    "harm": ("harmful", "harmless"),
    "style": tuple(HARM_OF),
    "split": ("train", "val", "test"),
}
"""Columns with a fixed set of values."""

SPLITS = VOCABULARY["split"]


def prompt_id(text: str) -> str:
    """Content hash of a prompt: the first 16 hex digits of SHA-256 of its exact UTF-8 text.

    Exact, not normalised: a model reads "Kill it" and "kill it" as different tokens, so results of
    one are not results of the other.

    Raises
    ------
    PromptError
        If it has no UTF-8 form.

    Examples
    --------
    >>> prompt_id("How do I bake a cake?")
    '10e6e3c5b94eb98b'
    """
    try:
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    except UnicodeEncodeError as e:
        raise PromptError(
            f"prompt {quote(text)} holds half of a character (U+{ord(text[e.start]):04X}), which is no "
            "text; correct it."
        ) from e


def normalise(text: str) -> str:
    r"""Fold case, white space and Unicode form: texts equal after this are the same prompt.

    Examples
    --------
    >>> normalise("  How do\n I BAKE?") == normalise("how do i bake?")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_key(text: str) -> str:
    """Hash of the normalised text, 16 hex digits: equal for near-duplicates."""
    return prompt_id(normalise(text))


def repeats(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Texts that repeat an earlier one, case and white space aside: the numbers of the two."""
    first: dict[str, int] = {}
    places = [(first.setdefault(content_key(text), i), i) for i, text in enumerate(texts)]
    return [(before, again) for before, again in places if before != again]


def quote(text: str, *, width: int = 60) -> str:
    """A prompt as it stands in a message: one line, shortened, in quotes."""
    line = " ".join(text.split())
    return repr(line if len(line) <= width else line[: width - 1].rstrip() + "…")


def listed(values: Iterable[object], *, most: int = 20) -> str:
    """Values as they stand in a message: the first ones, each shortened."""
    texts = [str(v) for v in values]
    shown = [t if len(t) <= 60 else f"{t[:59]}…" for t in texts[:most]]
    more = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
    return ", ".join(shown + more) or "none"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The value that a misspelt one was probably meant to be.

    Long names and the hundreds of a strange file are not compared: that takes long and says nothing.
    """
    if len(name) > 100:
        return None
    candidates = [k for k in islice(known, 1000) if len(k) <= 100]
    return next(iter(difflib.get_close_matches(name, candidates, n=1)), None)


def check_types(values: Iterable[object], column: str, where: str) -> None:
    """Refuse values of a column that are neither text nor what a table holds untyped.

    Raises
    ------
    PromptError
        At the first one.
    """
    for i, value in enumerate(values, start=1):
        if value is not None and not isinstance(value, str | Number | np.bool_):
            raise PromptError(
                f"{where}: row {i} has a {type(value).__name__} for its {column!r}; give text."
            )
