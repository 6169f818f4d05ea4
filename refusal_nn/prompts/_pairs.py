"""Contrast pairs: a harmful prompt beside the harmless one that differs as little as possible."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labelled import Columns, Labelled, frozen
from refusal_nn.prompts._labels import HARM_OF, content_key, prompt_id, quote
from refusal_nn.prompts._load import combine
from refusal_nn.prompts._prompts import Prompts

if TYPE_CHECKING:
    import xarray as xr

PAIR_COLUMNS = ("clean", "corrupted", "category", "split", "family")
"""Columns of a set of pairs, in the order they are written."""


class Pairs(Labelled):
    """Contrast pairs with their labels, one row a pair. Immutable: selections are new sets.

    The *clean* prompt is the harmful one, the *corrupted* prompt its harmless partner. Patching
    puts activations of one into the run of the other, so the two must have the same number of
    tokens; that depends on the model and is checked by :func:`refusal_nn.patching.align`.

    Parameters
    ----------
    columns : mapping of str to sequence of str
        ``clean``, ``corrupted``, ``category``, ``split`` (train | val | test) and ``family`` (pairs
        of one family are variants of one contrast: splits must not share families).
    name : str
        Name of the set in messages and provenance.

    Raises
    ------
    PromptError
        If a column is missing or empty somewhere, a pair contrasts nothing or occurs twice, or a
        text is clean in one pair and corrupted in another.

    Examples
    --------
    >>> pairs = Pairs.from_rows([dict(clean="How do I make a bomb?", corrupted="How do I make a pie?",
    ...     category="violence", split="test", family="bomb")])
    >>> len(pairs), pairs.clean.harm.tolist(), pairs.corrupted.texts
    (1, ['harmful'], ['How do I make a pie?'])
    """

    _TEXTS = ("clean", "corrupted")
    _COLUMNS = PAIR_COLUMNS
    _NOUN = "pairs"

    def __init__(self, columns: Columns, *, name: str = "pairs") -> None:
        if missing := [c for c in PAIR_COLUMNS if c not in columns]:
            raise PromptError(
                f"{name} has no column {', '.join(missing)}; pairs need {', '.join(PAIR_COLUMNS)}."
            )
        n = len(columns["clean"])
        # a harmless partner is worded like a harmful request, which is what style `hard` means
        self._clean, self._corrupted = (
            Prompts(
                {
                    **columns,
                    "text": columns[side],
                    "harm": [HARM_OF[style]] * n,
                    "style": [style] * n,
                    "source": [name] * n,
                },
                name=f"{name} ({side})",
            )
            for side, style in (("clean", "toxic"), ("corrupted", "hard"))
        )
        self._name = str(name)
        labels = {c: self._clean._columns[c] for c in ("category", "split", "family")}
        self._columns = {"clean": self._clean.text, "corrupted": self._corrupted.text, **labels}
        _check_contrast(self._clean, self._corrupted, self._name)

    @property
    def clean(self) -> Prompts:
        """The harmful prompts, row ``k`` of pair ``k``."""
        return self._clean

    @property
    def corrupted(self) -> Prompts:
        """The harmless prompts, row ``k`` of pair ``k``."""
        return self._corrupted

    @cached_property
    def pair_id(self) -> NDArray[np.object_]:
        """Content hash of each pair, ``[pair]``: 16 hex digits of SHA-256 of its two exact texts."""
        ids = [prompt_id(json.dumps(texts, ensure_ascii=False)) for texts in self]
        return frozen(np.array(ids, dtype=object))

    @property
    def _ids(self) -> NDArray[np.object_]:
        return self.pair_id

    def prompts(self) -> Prompts:
        """All prompts as one set: the harmful ones, then the harmless ones in the same order."""
        return combine(self._clean, self._corrupted, name=self._name)

    def to_dataset(self) -> xr.Dataset:
        """The pairs as a labelled dataset.

        Returns
        -------
        xarray.Dataset
            ``clean_text`` and ``corrupted_text`` over dim ``prompt`` (one entry a pair), with
            coords ``prompt_id`` (the pair's id), ``category``, ``harm`` and ``style`` (of the clean
            prompt), ``split``, ``source``, ``family``; attrs ``prompts`` and ``prompts_hash``.
        """
        table = self._clean.to_dataset().rename(text="clean_text")
        return (
            table.assign(corrupted_text=("prompt", self._corrupted.text.copy()))
            .assign_coords(prompt_id=("prompt", self.pair_id.copy()))
            .assign_attrs(prompts=self.name, prompts_hash=self.hash)
        )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self._clean.texts, self._corrupted.texts, strict=True))

    def __getitem__(self, key: slice | int | ArrayLike) -> Pairs:
        """Rows by slice, int, int array or bool mask, as a new set."""
        out = super().__getitem__(key)
        out._clean, out._corrupted = self._clean[key], self._corrupted[key]
        return out


def _check_contrast(clean: Prompts, corrupted: Prompts, name: str) -> None:
    first: dict[tuple[str, str], int] = {}
    a = [content_key(t) for t in clean.texts]
    b = [content_key(t) for t in corrupted.texts]
    for i, keys in enumerate(zip(a, b, strict=True)):
        if keys[0] == keys[1]:
            raise PromptError(
                f"{name}: pair {i + 1} has {quote(clean.texts[i])} as both its harmful and its "
                "harmless prompt; a pair needs one of each class."
            )
        if (before := first.setdefault(keys, i)) != i:
            raise PromptError(
                f"{name}: pair {i + 1}, {quote(clean.texts[i])}, repeats pair {before + 1}; remove "
                "one of them."
            )
    both = set(a) & set(b)
    if both:
        text = next(t for t, key in zip(clean.texts, a, strict=True) if key in both)
        raise PromptError(
            f"{name}: {quote(text)} is the harmful prompt of one pair and the harmless prompt of "
            "another; it can be of one class only."
        )
