"""Give meaning to the columns of a foreign file: which is the text, what its labels say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import (
    COLUMNS,
    HARM_OF,
    VOCABULARY,
    content_key,
    listed,
    nearest,
    quote,
)

MAX_LABEL = 10_000
"""Most characters of a label; texts may be as long as they like."""

ALIASES: dict[str, tuple[str, ...]] = {
    **{column: (column,) for column in COLUMNS},
    "text": ("text", "prompt", "instruction", "goal", "behavior", "question", "query", "request"),
    "category": ("category", "semantic_category", "semanticcategory"),
    "harm": ("harm", "label", "harmfulness"),
}
"""Names each column is found under, best first; case does not matter."""

LABELS: dict[str, str] = {
    label: meaning
    for meaning, labels in {
        "harmful": ("harmful", "refuse", "unsafe", "malicious"),
        "toxic": ("toxic",),
        "harmless": ("harmless", "respond", "comply", "benign", "safe"),
        "hard": ("hard",),
    }.items()
    for label in labels
}
"""What the values of a label column mean, as a harm or a style."""

SPLIT_NAMES = {
    name: split
    for split, names in {
        "train": ("train", "training"),
        "val": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing"),
    }.items()
    for name in names
}
"""Names of splits, and which one each means."""

_DEFAULT_STYLE = {"harmful": "toxic", "harmless": "safe"}


def canonical_rows(
    raw: Sequence[Mapping[str, Any]],
    *,
    source: str,
    file: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
) -> list[dict[str, str]]:
    """Rows with the columns of a prompt set; ``split`` is empty where the file has none.

    Parameters
    ----------
    raw : sequence of mapping
        Rows as read.
    source : str
        Default of the column ``source``.
    file : str, optional
        Name in messages; default ``source``.
    columns : mapping, optional
        Which column of the file is which, ``{"text": "goal"}``; others are found by
        :data:`ALIASES`.
    labels : mapping, optional
        What values of the label column mean, ``{"1": "harmful"}``, beside :data:`LABELS`.
    constants : mapping, optional
        Labels all rows get, ``{"harm": "harmful"}``, whatever the file says.

    Returns
    -------
    list of dict
        Without a style, harmful rows are ``toxic`` and harmless ones ``safe``; without a category,
        ``uncategorised``; without a family, a prompt is its own family.

    Raises
    ------
    PromptError
        If no column holds the text, nothing tells harmful from harmless, a named column is not
        there, a row is no mapping, or a value is empty, unknown or no text.
    """
    file = file or source
    check_mappings(raw, file)
    constant = _checked_constants(constants or {})
    found = columns_of(raw)
    names = _locate(found, columns or {}, file)
    if "text" not in names:
        raise PromptError(
            f"{file} has no column for the text of the prompts: it has {listed(found)}, and needs "
            f"one of {listed(ALIASES['text'])}. Name it with columns={{'text': COLUMN}} "
            "(--column text=COLUMN)."
        )
    if not ({"harm", "style"} & (set(names) | set(constant))):
        raise PromptError(
            f"{file} has no column that tells harmful from harmless: it has {listed(found)}, and "
            f"needs one of {listed((*ALIASES['harm'], *ALIASES['style']))}. Name it with "
            "columns={'harm': COLUMN} (--column harm=COLUMN), or label all rows with harm=."
        )
    meanings = {**LABELS, **_checked_labels(labels or {})}
    return [
        _row(row, f"{file}, row {i}", names, constant, meanings, source)
        for i, row in enumerate(raw, start=1)
    ]


def _row(
    row: Mapping[str, Any],
    where: str,
    names: Mapping[str, str],
    constant: Mapping[str, str],
    meanings: Mapping[str, str],
    source: str,
) -> dict[str, str]:
    def value(column: str) -> str:
        if column in constant:
            return constant[column]
        if column not in names:
            return ""
        found = as_text(row.get(names[column]), names[column], where)
        if column != "text" and len(found) > MAX_LABEL:
            raise PromptError(
                f"{where} has {len(found):,} characters in its {names[column]!r}; a label has at most "
                f"{MAX_LABEL:,}, so shorten it or drop the column."
            )
        return found

    if isinstance(row.get(names["text"]), bool | np.bool_):
        raise PromptError(f"{where} has {row[names['text']]} for its {names['text']!r}; give text.")
    text = value("text")
    if not text:
        raise PromptError(
            f"{where} has an empty {names['text']!r}; give every row a prompt, or remove the row."
        )
    style = value("style")
    if "harm" in constant and HARM_OF.get(style.casefold()) != constant["harm"]:
        style = ""  # the label given for all rows holds, whatever the file says
    style, harm = _labelled(style, value("harm"), meanings, where)
    split = value("split")
    if not split and "split" in names:
        raise PromptError(
            f"{where} has an empty {names['split']!r}; label every row, or drop the column to have "
            "splits drawn."
        )
    if split and split.casefold() not in SPLIT_NAMES:
        raise PromptError(
            f"{where} has split {quote(split)}; allowed are {listed(VOCABULARY['split'])}."
        )
    return {
        "text": text,
        "category": value("category") or "uncategorised",
        "harm": harm,
        "style": style,
        "split": SPLIT_NAMES[split.casefold()] if split else "",
        "source": value("source") or source,
        "family": value("family") or f"text-{content_key(text)}",
    }


def _labelled(style: str, label: str, meanings: Mapping[str, str], where: str) -> tuple[str, str]:
    """Style and harm of a row from its two label columns, either of which may be empty."""
    style = style.casefold()
    if style and style not in HARM_OF:
        raise PromptError(f"{where} has style {quote(style)}; allowed are {listed(HARM_OF)}.")
    if not (style or label):
        raise PromptError(
            f"{where} has no label; give every row a label ({listed(LABELS)}), or remove it."
        )
    if not label:
        return style, HARM_OF[style]
    meaning = meanings.get(label.casefold())
    if meaning is None:
        raise PromptError(
            f"{where} has label {quote(label)}; known are {listed(meanings)}. Say what others mean "
            f"with labels={{{quote(label)}: 'harmful'}} (--label {quote(label)[1:-1]}=harmful)."
        )
    implied = _DEFAULT_STYLE.get(meaning, meaning)
    harm = HARM_OF[implied]
    if style and HARM_OF[style] != harm:
        raise PromptError(
            f"{where} is labelled {label!r} ({harm}) but of style {style!r}, which is "
            f"{HARM_OF[style]}; correct one of them."
        )
    return style or implied, harm


def _locate(found: Sequence[str], chosen: Mapping[str, str], source: str) -> dict[str, str]:
    """File column of each of our columns, where there is one."""
    if unknown := [c for c in chosen if c not in ALIASES]:
        raise PromptError(f"there is no column {quote(unknown[0])}; ours are {listed(COLUMNS)}.")
    for ours, name in chosen.items():
        if name not in found:
            close = nearest(name, found)
            hint = f" Did you mean {close!r}?" if close else ""
            raise PromptError(
                f"{source} has no column {quote(name)} (for {ours}); it has {listed(found)}.{hint}"
            )
    return {**find(found, ALIASES), **chosen}


def check_mappings(rows: Iterable[Any], file: str) -> None:
    """Refuse rows that are no mappings, as a loader of someone else's may yield.

    Raises
    ------
    PromptError
        At the first one.
    """
    for i, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise PromptError(
                f"{file}, row {i} is a {type(row).__name__}; each row must map column names to values."
            )


def columns_of(raw: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all columns, in the order they first occur."""
    return list(dict.fromkeys(str(name) for row in raw for name in row))


def find(found: Iterable[str], aliases: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Column of a file for each of ours that it has: best name first, in any case."""
    folded: dict[str, str] = {}
    for name in found:
        folded.setdefault(name.casefold(), name)
    return {
        ours: next(folded[name] for name in names if name in folded)
        for ours, names in aliases.items()
        if not folded.keys().isdisjoint(names)
    }


def _checked_constants(constants: Mapping[str, str]) -> dict[str, str]:
    out = dict(constants)
    for column, value in out.items():
        allowed = VOCABULARY.get(column)
        if allowed and value not in allowed:
            raise PromptError(f"{column} cannot be {value!r}; choose from {listed(allowed)}.")
    if {"harm", "style"} <= set(out) and HARM_OF[out["style"]] != out["harm"]:
        raise PromptError(
            f"style {out['style']!r} is {HARM_OF[out['style']]}, not {out['harm']}; give one."
        )
    if "style" in out:
        out.setdefault("harm", HARM_OF[out["style"]])
    return out


def _checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    allowed = {*VOCABULARY["harm"], *HARM_OF}
    for label, meaning in labels.items():
        if meaning not in allowed:
            raise PromptError(
                f"label {quote(str(label))} cannot mean {quote(str(meaning))}; choose from "
                f"{listed(sorted(allowed))}."
            )
    return {str(label).casefold(): meaning for label, meaning in labels.items()}


def as_text(value: Any, column: str, where: str) -> str:
    """A value as text; numbers and booleans are labels that tables hold untyped.

    Raises
    ------
    PromptError
        If it is neither, or no Unicode text.
    """
    if value is None:
        return ""
    if not isinstance(value, str | Number | np.bool_):
        raise PromptError(f"{where} has a {type(value).__name__} for its {column!r}; give text.")
    if value != value:  # NaN: how tables say "missing"
        return ""
    try:
        text = str(value).strip()
    except ValueError as e:
        raise PromptError(
            f"{where} has a number of thousands of digits for its {column!r}; give text."
        ) from e
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise PromptError(
            f"{where} has half of a character (U+{ord(text[e.start]):04X}) in its {column!r}, which is "
            "no text; correct it."
        ) from e
    return text
