"""Contrast pairs token by token, with the alignment checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from refusal_nn.errors import PromptError

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs


@dataclass(frozen=True)
class AlignedPairs:
    """The token rows of pairs whose two prompts are of equal length.

    Attributes
    ----------
    clean_rows, corrupted_rows : tuple of tuple of int
        Token ids of each formatted prompt; row ``k`` of both has ``lengths[k]`` tokens.
    first_difference : tuple of int
        Where each pair first differs, counted from the end of the prompt (negative). Activations
        before it are the same in both runs, so patching them does nothing.
    """

    clean_rows: tuple[tuple[int, ...], ...]
    corrupted_rows: tuple[tuple[int, ...], ...]
    first_difference: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each pair."""
        return tuple(map(len, self.clean_rows))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions from the end where some pair can differ and that every pair has."""
        start = max(min(self.first_difference), -min(self.lengths))
        return tuple(range(start, 0))

    def take(self, rows: Sequence[int]) -> AlignedPairs:
        """Some of the pairs, in the order given."""
        return AlignedPairs(
            tuple(self.clean_rows[k] for k in rows),
            tuple(self.corrupted_rows[k] for k in rows),
            tuple(self.first_difference[k] for k in rows),
        )

    def __len__(self) -> int:
        return len(self.clean_rows)


MIN_SHARED = 0.25
"""Least share of the tokens of a request that both prompts of a pair have at the same place.

Minimal pairs differ in one span; sets that are built differ in the object and now and then the verb
of a request, whose frame stays: in ``tiny-pairs`` they share at least a third. Prompts with less in
common are two requests, and what an activation at one token does is not comparable with the other.
"""

_PROBES = ("Zebras", "7 apples")


def align(model: Model, pairs: Pairs, *, min_shared: float = MIN_SHARED) -> AlignedPairs:
    """Token rows of pairs, aligned from the end of the prompt.

    Parameters
    ----------
    model : Model
        Its tokenizer and chat template decide the tokens.
    pairs : Pairs
    min_shared : float
        Least share of a request's tokens, those of the chat template left out, that its two prompts
        must have at the same place; 0 takes any two prompts of equal length.

    Raises
    ------
    PromptError
        If there are no pairs, the two prompts of a pair have different numbers of tokens, they are
        the same tokens, or they share fewer than ``min_shared``.

    Examples
    --------
    >>> from refusal_nn import load_model
    >>> from refusal_nn.prompts import load_pairs
    >>> aligned = align(load_model("tiny-refuser"), load_pairs("tiny-pairs").test)
    >>> aligned.positions[-1], len(aligned) == len(aligned.lengths)
    (-1, True)
    """
    if not len(pairs):
        raise PromptError(f"there are no pairs to align; the set {pairs.name!r} is empty.")
    clean = model.chat.tokens(pairs.clean.texts)
    corrupted = model.chat.tokens(pairs.corrupted.texts)
    first = []
    uneven = [k for k in range(len(pairs)) if len(clean[k]) != len(corrupted[k])]
    if uneven:
        k = uneven[0]
        more = f" ({len(uneven) - 1} more pairs are uneven)" if len(uneven) > 1 else ""
        raise PromptError(
            f"pair {k + 1} of {pairs.name!r} is not aligned: {pairs.clean.texts[k]!r} has "
            f"{len(clean[k])} tokens for {model.name!r}, {pairs.corrupted.texts[k]!r} has "
            f"{len(corrupted[k])}{more}; give both prompts of a pair the same number of tokens."
        )
    for k, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        where = next((i for i in range(len(a)) if a[i] != b[i]), None)
        if where is None:
            raise PromptError(
                f"pair {k + 1} of {pairs.name!r}, {pairs.clean.texts[k]!r} and "
                f"{pairs.corrupted.texts[k]!r}, is the same tokens for {model.name!r}; remove it."
            )
        first.append(where - len(a))
    _check_shared(model, pairs, clean, corrupted, min_shared)
    return AlignedPairs(tuple(map(tuple, clean)), tuple(map(tuple, corrupted)), tuple(first))


def _check_shared(
    model: Model,
    pairs: Pairs,
    clean: Sequence[Sequence[int]],
    corrupted: Sequence[Sequence[int]],
    least: float,
) -> None:
    """Refuse pairs that are two different requests of equal length."""
    before, after = _template_tokens(model, [*clean, *corrupted])
    for k, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        own = slice(before, len(a) - after)
        same = [x == y for x, y in zip(a[own], b[own], strict=True)]
        if sum(same) < least * len(same):
            raise PromptError(
                f"pair {k + 1} of {pairs.name!r} is not aligned: {pairs.clean.texts[k]!r} and "
                f"{pairs.corrupted.texts[k]!r} share {sum(same)} of {len(same)} tokens for "
                f"{model.name!r} at the same place, less than {least:.0%}; give pairs of one request "
                "that differ in a word or two."
            )


def _template_tokens(model: Model, rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Tokens that the chat template puts before every request, and after it.

    The former are what prompts that begin differently begin with: two probes, and ``rows``, since
    both probes may be unknown words.
    """
    columns = zip(*model.chat.tokens(_PROBES), *rows, strict=False)
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns)), model.chat.n_eoi
