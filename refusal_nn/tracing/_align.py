"""Contrast pairs token by token, with the alignment checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    lengths : tuple of int
        Tokens of each pair.
    first_difference : tuple of int
        Where each pair first differs, counted from the end of the prompt (negative). Activations
        before it are the same in both runs, so patching them does nothing.
    """

    clean_rows: tuple[tuple[int, ...], ...]
    corrupted_rows: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    first_difference: tuple[int, ...]

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
            tuple(self.lengths[k] for k in rows),
            tuple(self.first_difference[k] for k in rows),
        )

    def __len__(self) -> int:
        return len(self.lengths)


def align(model: Model, pairs: Pairs) -> AlignedPairs:
    """Token rows of pairs, aligned from the end of the prompt.

    Parameters
    ----------
    model : Model
        Its tokenizer and chat template decide the tokens.
    pairs : Pairs

    Raises
    ------
    PromptError
        If there are no pairs, the two prompts of a pair have different numbers of tokens, or they
        are the same tokens.

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
    return AlignedPairs(
        tuple(map(tuple, clean)),
        tuple(map(tuple, corrupted)),
        tuple(map(len, clean)),
        tuple(first),
    )
