"""Contrast pairs: a harmful prompt beside the harmless one that differs as little as possible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import content_key, quote
from refusal_nn.prompts._load import combine
from refusal_nn.prompts._prompts import Prompts

if TYPE_CHECKING:
    import xarray as xr

PAIR_COLUMNS = ("clean", "corrupted", "category", "split", "family")
"""Columns of a set of pairs, in the order they are written."""


class Pairs:
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

    def __init__(self, columns: Mapping[str, Sequence[str]], *, name: str = "pairs") -> None:
        if missing := [c for c in PAIR_COLUMNS if c not in columns]:
            raise PromptError(
                f"{name} has no column {', '.join(missing)}; pairs need {', '.join(PAIR_COLUMNS)}."
            )
        shared = {c: columns[c] for c in ("category", "split", "family")}
        n = len(columns["clean"])
        # a harmless partner is worded like a harmful request, which is what style `hard` means
        sides = (("clean", "harmful", "toxic"), ("corrupted", "harmless", "hard"))
        made = [
            Prompts(
                {
                    "text": columns[side],
                    "harm": [harm] * n,
                    "style": [style] * n,
                    "source": [name] * n,
                    **shared,
                },
                name=f"{name} ({side})",
            )
            for side, harm, style in sides
        ]
        self._name = str(name)
        self._clean, self._corrupted = made
        _check_contrast(self._clean, self._corrupted, self._name)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, str]], *, name: str = "pairs") -> Pairs:
        """Make a set from one mapping a pair; every mapping needs every column."""
        rows = list(rows)
        for i, row in enumerate(rows, start=1):
            if missing := [c for c in PAIR_COLUMNS if c not in row]:
                raise PromptError(
                    f"{name}: row {i} has no {', '.join(missing)}; every row needs "
                    f"{', '.join(PAIR_COLUMNS)}."
                )
        return cls({c: [row[c] for row in rows] for c in PAIR_COLUMNS}, name=name)

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._name

    @property
    def clean(self) -> Prompts:
        """The harmful prompts, row ``k`` of pair ``k``."""
        return self._clean

    @property
    def corrupted(self) -> Prompts:
        """The harmless prompts, row ``k`` of pair ``k``."""
        return self._corrupted

    @property
    def category(self) -> NDArray[np.object_]:
        """Subject of each pair, ``[pair]``."""
        return self._clean.category

    @property
    def family(self) -> NDArray[np.object_]:
        """What pairs share that are variants of one contrast, ``[pair]``."""
        return self._clean.family

    @property
    def split(self) -> NDArray[np.object_]:
        """``train``, ``val`` or ``test``, ``[pair]``."""
        return self._clean.split

    @cached_property
    def pair_id(self) -> NDArray[np.object_]:
        """Content hash of each pair, ``[pair]``: 16 hex digits of SHA-256 of its two exact texts."""
        ids = np.array(
            [
                hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:16]
                for texts in zip(self._clean.texts, self._corrupted.texts, strict=True)
            ],
            dtype=object,
        )
        ids.flags.writeable = False
        return ids

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over ids and labels in order; the name is left out."""
        digest = hashlib.sha256()
        for row in zip(self.pair_id, self.category, self.split, self.family, strict=True):
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @property
    def categories(self) -> list[str]:
        """Categories present, in the order they first appear."""
        return self._clean.categories

    @property
    def splits(self) -> list[str]:
        """Splits present, in the order train, val, test."""
        return self._clean.splits

    @property
    def train(self) -> Pairs:
        """Discovery pairs. Raises PromptError if there are none."""
        return self._of_split("train")

    @property
    def val(self) -> Pairs:
        """Selection pairs. Raises PromptError if there are none."""
        return self._of_split("val")

    @property
    def test(self) -> Pairs:
        """Held-out pairs. Raises PromptError if there are none."""
        return self._of_split("test")

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
        import xarray as xr

        labels = {
            "prompt_id": self.pair_id,
            **{c: getattr(self._clean, c) for c in ("category", "harm", "style", "split")},
            "source": np.array([self._name] * len(self), dtype=object),
            "family": self.family,
        }
        return xr.Dataset(
            {
                "clean_text": ("prompt", self._clean.text.copy()),
                "corrupted_text": ("prompt", self._corrupted.text.copy()),
            },
            coords={name: ("prompt", values.copy()) for name, values in labels.items()},
            attrs={"prompts": self.name, "prompts_hash": self.hash},
        )

    def to_rows(self) -> list[dict[str, str]]:
        """One dict a pair, with the columns in writing order."""
        columns = (self._clean.text, self._corrupted.text, self.category, self.split, self.family)
        return [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return len(self._clean)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(zip(self._clean.texts, self._corrupted.texts, strict=True))

    def __getitem__(self, key: slice | int | ArrayLike) -> Pairs:
        """Rows by slice, int, int array or bool mask, as a new set."""
        out = object.__new__(Pairs)
        out._name = self._name
        out._clean, out._corrupted = self._clean[key], self._corrupted[key]
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pairs) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        counts = ", ".join(f"{s} {(self.split == s).sum()}" for s in self.splits)
        return f"<Pairs {self.name!r}: {len(self)} pairs ({counts or 'empty'})>"

    def _of_split(self, split: str) -> Pairs:
        found = self[np.flatnonzero(self.split == split)]
        if not len(found):
            has = ", ".join(f"{s} {(self.split == s).sum()}" for s in self.splits) or "no pairs"
            raise PromptError(
                f"{self.name} has no pairs in split {split!r} (it has {has}); label some rows "
                f"{split!r}, or drop the split column to have splits drawn."
            )
        return found


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
