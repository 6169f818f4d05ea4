"""A labelled, split, hash-identified set of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labelled import Columns, Labelled, frozen
from refusal_nn.prompts._labels import (
    COLUMNS,
    HARM_OF,
    VOCABULARY,
    check_types,
    listed,
    prompt_id,
    quote,
)

if TYPE_CHECKING:
    import xarray as xr


class Prompts(Labelled):
    """Prompts with their labels, one row a prompt. Immutable: every method returns a new set.

    Parameters
    ----------
    columns : mapping of str to sequence of str
        ``text``, ``category``, ``harm`` (harmful | harmless), ``style`` (toxic | hard | safe),
        ``split`` (train | val | test), ``source`` and ``family`` (prompts of one family are
        variants of one request: splits must not share families). All of one length.
    name : str
        Name of the set in messages and provenance.

    Raises
    ------
    PromptError
        If a column is missing, columns differ in length, a text is empty, a label is unknown, or
        style and harm contradict each other.

    Examples
    --------
    >>> rows = [dict(text="How do I kill a process?", category="violence", harm="harmless",
    ...              style="hard", split="test", source="me", family="kill-process")]
    >>> prompts = Prompts.from_rows(rows, name="mine")
    >>> len(prompts), prompts.texts, prompts.harmless.style.tolist()
    (1, ['How do I kill a process?'], ['hard'])
    """

    _TEXTS = ("text",)
    _COLUMNS = COLUMNS
    _NOUN = "prompts"

    def __init__(self, columns: Columns, *, name: str = "prompts") -> None:
        self._name = str(name)
        self._columns = _checked(columns, self._name)
        # selections remember these, so that a category one lacks is not taken for a misspelling
        self._known_categories = tuple(dict.fromkeys(self._columns["category"]))

    @property
    def texts(self) -> list[str]:
        """The prompts as a new list of str."""
        return list(self._columns["text"])

    @property
    def text(self) -> NDArray[np.object_]:
        """The prompts, ``[prompt]`` of str, read-only."""
        return self._columns["text"]

    @property
    def harm(self) -> NDArray[np.object_]:
        """``harmful`` or ``harmless``, ``[prompt]``."""
        return self._columns["harm"]

    @property
    def style(self) -> NDArray[np.object_]:
        """``toxic``, ``hard`` (harmless, looks harmful) or ``safe``, ``[prompt]``."""
        return self._columns["style"]

    @property
    def source(self) -> NDArray[np.object_]:
        """The data set or file each prompt is from, ``[prompt]``."""
        return self._columns["source"]

    @cached_property
    def prompt_id(self) -> NDArray[np.object_]:
        """Content hash of each prompt, ``[prompt]``: 16 hex digits of SHA-256 of its exact text."""
        return frozen(np.array([prompt_id(t) for t in self.text], dtype=object))

    @property
    def _ids(self) -> NDArray[np.object_]:
        return self.prompt_id

    @property
    def harmful(self) -> Prompts:
        """Prompts a model should refuse; may be empty."""
        return self.select(harm="harmful")

    @property
    def harmless(self) -> Prompts:
        """Prompts a model should answer (hard and safe); may be empty."""
        return self.select(harm="harmless")

    @property
    def toxic(self) -> Prompts:
        """Prompts of style toxic; may be empty."""
        return self.select(style="toxic")

    @property
    def hard(self) -> Prompts:
        """Harmless prompts that look harmful; may be empty."""
        return self.select(style="hard")

    @property
    def safe(self) -> Prompts:
        """Plainly harmless prompts; may be empty."""
        return self.select(style="safe")

    def select(
        self,
        *,
        category: str | Iterable[str] | None = None,
        harm: str | Iterable[str] | None = None,
        style: str | Iterable[str] | None = None,
        split: str | Iterable[str] | None = None,
    ) -> Prompts:
        """Prompts with the given labels: a value or several of each, combined by *and*.

        Returns
        -------
        Prompts
            In the same order; empty if no prompt has them all.

        Raises
        ------
        PromptError
            If a value is not a label; a category, if the set this was selected from lacks it too.
        """
        keep = np.ones(len(self), dtype=bool)
        asked = {"category": category, "harm": harm, "style": style, "split": split}
        for column, value in asked.items():
            if value is None:
                continue
            values = [value] if isinstance(value, str) else list(value)
            allowed = VOCABULARY.get(column) or self._known_categories
            if unknown := [v for v in values if v not in allowed]:
                raise PromptError(
                    f"{self.name} has no {column} {quote(str(unknown[0]))}; choose from {listed(allowed)}."
                )
            keep &= np.isin(self._columns[column].astype(str), values)
        return self[np.flatnonzero(keep)]

    def take(self, n: int, *, seed: int = 0) -> Prompts:
        """A random sample of ``n`` prompts with the same shares of (category, style).

        Parameters
        ----------
        n : int
            At most ``len(self)``. Each (category, style) gets its share rounded down or up; which
            are rounded up is drawn.
        seed : int
            The same seed gives the same sample.

        Returns
        -------
        Prompts
            In the order of the set.

        Raises
        ------
        PromptError
            If there are not ``n`` prompts, or ``n`` is negative.
        """
        if not 0 <= n <= len(self):
            raise PromptError(
                f"{self.name} has {len(self)} prompts here, {n} were asked for; "
                f"ask for 0 to {len(self)}."
            )
        rng = np.random.default_rng(seed)
        strata: dict[tuple[str, str], list[int]] = {}
        for i, stratum in enumerate(zip(self.category, self.style, strict=True)):
            strata.setdefault(stratum, []).append(i)
        order = sorted(strata)
        sizes = np.array([len(strata[s]) for s in order], dtype=np.int64)
        share, rest = np.divmod(sizes * n, max(len(self), 1))
        tie_break = rng.random(len(order))
        up = np.lexsort((tie_break, -rest))[: n - share.sum()]
        share[up] += 1
        picked = [
            rng.choice(strata[s], size=k, replace=False) for s, k in zip(order, share, strict=True)
        ]
        return self[np.sort(np.concatenate(picked))] if picked else self

    def to_dataset(self) -> xr.Dataset:
        """The set as a labelled dataset.

        Returns
        -------
        xarray.Dataset
            ``text`` over dim ``prompt``, with coords ``prompt_id``, ``category``, ``harm``,
            ``style``, ``split``, ``source`` and ``family`` (all str); attrs ``prompts`` (the name)
            and ``prompts_hash``.
        """
        import xarray as xr

        coords = {"prompt_id": self.prompt_id, **{c: self._columns[c] for c in COLUMNS[1:]}}
        return xr.Dataset(
            {"text": ("prompt", self.text.copy())},
            coords={name: ("prompt", values.copy()) for name, values in coords.items()},
            attrs={"prompts": self.name, "prompts_hash": self.hash},
        )

    def renamed(self, name: str) -> Prompts:
        """The same prompts under another name."""
        return Prompts(self._columns, name=name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __getitem__(self, key: slice | int | ArrayLike) -> Prompts:
        """Rows by slice, int, int array or bool mask, as a new set."""
        out = super().__getitem__(key)
        out._known_categories = self._known_categories
        return out


def _checked(columns: Columns, name: str) -> dict[str, NDArray[np.object_]]:
    if missing := [c for c in COLUMNS if c not in columns]:
        raise PromptError(
            f"{name} has no column {listed(missing)}; it has {listed(columns)} and needs "
            f"{listed(COLUMNS)}."
        )
    out = {}
    for column in COLUMNS:
        check_types(columns[column], column, name)
        values = np.empty(len(columns[column]), dtype=object)
        values[:] = ["" if v is None else str(v) for v in columns[column]]
        out[column] = frozen(values)
    if len({len(v) for v in out.values()}) > 1:
        lengths = ", ".join(f"{c} {len(v)}" for c, v in out.items())
        raise PromptError(f"{name}: columns differ in length ({lengths}).")
    for column in COLUMNS:
        empty = [i for i, v in enumerate(out[column]) if not v.strip()]
        if empty:
            raise PromptError(
                f"{name}: row {empty[0] + 1} has an empty {column} ({len(empty)} such rows); "
                "fill it in or remove the row."
            )
    for column, allowed in VOCABULARY.items():
        for i, value in enumerate(out[column]):
            if value not in allowed:
                raise PromptError(
                    f"{name}: row {i + 1} has {column} {quote(value)}; allowed are {listed(allowed)}."
                )
    for i, (style, harm) in enumerate(zip(out["style"], out["harm"], strict=True)):
        if HARM_OF[style] != harm:
            raise PromptError(
                f"{name}: row {i + 1}, {quote(out['text'][i])}, is labelled {harm} but of style "
                f"{style!r}, which is {HARM_OF[style]}; correct one of them."
            )
    return out
