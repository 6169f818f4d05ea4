"""What sets of prompts and of pairs have in common: labelled rows, splits, a hash of the content."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import SPLITS

Columns = Mapping[str, Sequence[str] | NDArray[np.object_]]
"""Columns by name, as they are given."""


class Labelled(ABC):
    """Rows of texts with their labels, one split each. Immutable: selections are new sets."""

    _TEXTS: ClassVar[tuple[str, ...]]
    """Columns of text."""
    _COLUMNS: ClassVar[tuple[str, ...]]
    """All columns, in the order they are written: the texts, then the labels."""
    _NOUN: ClassVar[str]
    """What rows are called."""

    _name: str
    _columns: dict[str, NDArray[np.object_]]

    @abstractmethod
    def __init__(self, columns: Columns, *, name: str) -> None: ...

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, str]], *, name: str | None = None) -> Self:
        """Make a set from one mapping a row; every mapping needs every column."""
        rows, name = list(rows), name or cls._NOUN
        for i, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise PromptError(
                    f"{name}: row {i} is a {type(row).__name__}; every row maps columns to values."
                )
            if missing := [c for c in cls._COLUMNS if c not in row]:
                raise PromptError(
                    f"{name}: row {i} has no {', '.join(missing)}; every row needs "
                    f"{', '.join(cls._COLUMNS)}."
                )
        return cls({c: [row[c] for row in rows] for c in cls._COLUMNS}, name=name)

    @property
    def name(self) -> str:
        """Name of the set."""
        return self._name

    @property
    def category(self) -> NDArray[np.object_]:
        """Subject of each row, ``[row]``."""
        return self._columns["category"]

    @property
    def split(self) -> NDArray[np.object_]:
        """``train``, ``val`` or ``test``, ``[row]``."""
        return self._columns["split"]

    @property
    def family(self) -> NDArray[np.object_]:
        """What rows share that are variants of one request or contrast, ``[row]``."""
        return self._columns["family"]

    @property
    @abstractmethod
    def _ids(self) -> NDArray[np.object_]:
        """Content hash of each row, ``[row]``."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over ids and labels in order; the name and nothing else is left out."""
        digest = hashlib.sha256()
        labels = [values for c, values in self._columns.items() if c not in self._TEXTS]
        for row in zip(self._ids, *labels, strict=True):
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @property
    def categories(self) -> list[str]:
        """Categories present, in the order they first appear."""
        return list(dict.fromkeys(self.category))

    @property
    def splits(self) -> list[str]:
        """Splits present, in the order train, val, test."""
        return [s for s in SPLITS if (self.split == s).any()]

    @property
    def train(self) -> Self:
        """Discovery rows. Raises PromptError if there are none."""
        return self._of_split("train")

    @property
    def val(self) -> Self:
        """Selection rows. Raises PromptError if there are none."""
        return self._of_split("val")

    @property
    def test(self) -> Self:
        """Held-out rows. Raises PromptError if there are none."""
        return self._of_split("test")

    def to_rows(self) -> list[dict[str, str]]:
        """One dict a row, with the columns in writing order."""
        columns = self._columns.values()
        return [dict(zip(self._COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: slice | int | ArrayLike) -> Self:
        """Rows by slice, int, int array or bool mask, as a new set."""
        if isinstance(key, slice):
            rows: Any = key
        else:
            rows = np.atleast_1d(np.asarray(key))
            if rows.size == 0:
                rows = rows.astype(np.intp)
            elif rows.dtype.kind not in "iub":
                raise TypeError(
                    f"{self._NOUN} are indexed by slice, int or bool, not {rows.dtype}."
                )
        out = object.__new__(type(self))
        out._name = self._name
        out._columns = {c: frozen(values[rows]) for c, values in self._columns.items()}
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        counts = self._counts() or "empty"
        return f"<{type(self).__name__} {self.name!r}: {len(self)} {self._NOUN} ({counts})>"

    def _counts(self) -> str:
        by_split = Counter(self.split)
        return ", ".join(f"{s} {by_split[s]}" for s in self.splits)

    def _of_split(self, split: str) -> Self:
        found = self[np.flatnonzero(self.split == split)]
        if not len(found):
            raise PromptError(
                f"{self.name} has no {self._NOUN} in split {split!r} (it has "
                f"{self._counts() or f'no {self._NOUN}'}); label some rows {split!r}, or drop the "
                "split column to have splits drawn."
            )
        return found


def frozen(values: NDArray[np.object_]) -> NDArray[np.object_]:
    """The same array, read-only from now on."""
    values.flags.writeable = False
    return values
