"""Draw splits that keep families together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import SPLITS, content_key

FRACTIONS: dict[str, float] = {"train": 0.5, "val": 0.2, "test": 0.3}
"""Default share of each split."""


def draw_splits(
    rows: Sequence[Mapping[str, str]],
    *,
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
) -> list[str]:
    """A split for each row: seeded, by family, stratified by category and harm.

    Rows with the same family or the same text (case and white space aside) form a group, and a
    group is never divided. Within each (harm, category), groups go in an order drawn from the seed
    to the split that is furthest behind its share; what one category lacks the next one makes up
    for. Neither the order of the rows nor the Python version matters.

    Parameters
    ----------
    rows : sequence of mapping
        With ``text``, ``category``, ``harm`` and ``family``.
    seed : int
        The same seed and rows give the same splits.
    fractions : mapping of split to float, optional
        Shares of train, val and test; they must sum to 1. Default .5, .2, .3.

    Returns
    -------
    list of str
        One of ``train``, ``val``, ``test`` a row.

    Raises
    ------
    PromptError
        If the fractions are not shares of the three splits.
    """
    shares = _checked(fractions if fractions is not None else FRACTIONS)
    strata: dict[tuple[str, str], list[list[int]]] = {}
    for group in _groups(rows):
        stratum = min((rows[i]["harm"], rows[i]["category"]) for i in group)
        strata.setdefault(stratum, []).append(group)

    out = [""] * len(rows)
    behind: dict[str, dict[str, float]] = {}
    for stratum in sorted(strata):
        # one account a class of harm, so that both classes get their shares
        account = behind.setdefault(stratum[0], dict.fromkeys(shares, 0.0))
        order = {min(content_key(rows[i]["text"]) for i in g): g for g in strata[stratum]}
        for key in sorted(order, key=lambda k: _draw(seed, k)):
            group = order[key]
            for split, share in shares.items():
                account[split] += share * len(group)
            chosen = max(account, key=account.__getitem__)
            account[chosen] -= len(group)
            for i in group:
                out[i] = chosen
    return out


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    shares = {s: float(fractions[s]) for s in SPLITS if fractions.get(s, 0) != 0}
    unknown = [str(s) for s in fractions if s not in SPLITS]
    if unknown or any(not 0 < v <= 1 for v in shares.values()):
        raise PromptError(
            f"split fractions {dict(fractions)} are not shares of {', '.join(SPLITS)}; "
            f"give for example {FRACTIONS}."
        )
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise PromptError(f"split fractions sum to {sum(shares.values()):g}; they must sum to 1.")
    return shares


def _groups(rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Rows connected through a shared family or a shared text."""
    from scipy.cluster.hierarchy import DisjointSet

    connected = DisjointSet(range(len(rows)))
    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        for link in (("family", row["family"]), ("text", content_key(row["text"]))):
            connected.merge(i, first.setdefault(link, i))
    return [sorted(group) for group in connected.subsets()]


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}|{key}".encode()).hexdigest()
