"""Overlap between sets of prompts, by content and by family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import content_key, quote, repeats
from refusal_nn.prompts._prompts import Prompts


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    Attributes
    ----------
    left, right : str
        Names of the sets or splits.
    texts : tuple of str
        Prompts of ``left`` that are also in ``right``, case and white space aside.
    families : tuple of str
        Families in both, other than through shared texts.
    """

    left: str
    right: str
    texts: tuple[str, ...]
    families: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{len(shared)} {one if len(shared) == 1 else more} (such as {quote(shared[0])})"
            for shared, one, more in (
                (self.texts, "prompt", "prompts"),
                (self.families, "family", "families"),
            )
            if shared
        ]
        return f"{self.left} and {self.right} share {' and '.join(parts)}"


def overlaps(*prompts: Prompts) -> list[Overlap]:
    """Overlaps between sets, or between the splits of a single one.

    Two prompts are the same if their texts are, case, white space and Unicode form aside.

    Returns
    -------
    list of Overlap
        One for each pair of sets that shares something; empty if they are disjoint.
    """
    return [found for pair in combinations(_parts(prompts), 2) if (found := _overlap(*pair))]


def check_disjoint(*prompts: Prompts) -> None:
    """Make sure that sets share no prompt and no family.

    Discovery, selection and test prompts must be disjoint by content and by template family, or a
    result on held-out prompts says nothing about new ones.

    Parameters
    ----------
    *prompts : Prompts
        Two or more sets; or one, whose splits are then compared.

    Raises
    ------
    PromptError
        If two of them share a prompt (case and white space aside) or a family.
    """
    if found := overlaps(*prompts):
        more = f" ({len(found) - 1} more pairs overlap)" if len(found) > 1 else ""
        raise PromptError(
            f"{found[0]}{more}; keep each prompt and each family in one split, or drop the split "
            "column to have splits drawn by family."
        )


def duplicates(prompts: Prompts) -> list[tuple[int, int]]:
    """Rows that repeat the text of an earlier row, case and white space aside.

    Returns
    -------
    list of (first, again)
        0-based row numbers, in order of ``again``.
    """
    return repeats(prompts.text)


def _parts(prompts: tuple[Prompts, ...]) -> Iterator[tuple[str, Prompts]]:
    if len(prompts) == 1:
        for split in prompts[0].splits:
            yield f"{prompts[0].name}: splits {split}", prompts[0].select(split=split)
        return
    names = [p.name for p in prompts]
    for i, part in enumerate(prompts):
        name = part.name
        if names.count(name) > 1:
            name += f" ({'/'.join(part.splits) or 'empty'}, set {i + 1})"
        yield name, part


def _overlap(left: tuple[str, Prompts], right: tuple[str, Prompts]) -> Overlap | None:
    (left_name, a), (right_name, b) = left, right
    keys = {content_key(t) for t in b.text}
    same = [content_key(t) in keys for t in a.text]
    texts = tuple(t for t, shared in zip(a.text, same, strict=True) if shared)
    through = {f for f, shared in zip(a.family, same, strict=True) if shared}
    families = tuple(sorted((set(a.family) & set(b.family)) - through))
    if not texts and not families:
        return None
    return Overlap(left_name, right_name.removeprefix(f"{a.name}: splits "), texts, families)
