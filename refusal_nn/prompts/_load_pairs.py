"""Load contrast pairs by name or from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refusal_nn._files import kind_at, quoted
from refusal_nn.errors import PromptError
from refusal_nn.prompts._columns import as_text, canonical_rows, columns_of, find
from refusal_nn.prompts._disjoint import check_disjoint
from refusal_nn.prompts._labels import listed, quote
from refusal_nn.prompts._pairs import Pairs
from refusal_nn.prompts._read import FORMATS, read_rows
from refusal_nn.prompts._splits import draw_splits

EMBEDDED_PAIRS = {
    "tiny-pairs": "harmful and harmless objects in one wording, token for token, for tiny-refuser"
}
"""Sets of pairs shipped with the package, by name."""

_ALIASES = {
    "clean": ("clean", "harmful"),
    "corrupted": ("corrupted", "harmless"),
    "pair": ("pair", "pair_id"),
}


def load_pairs(source: str | os.PathLike[str], *, seed: int = 0, name: str | None = None) -> Pairs:
    """Load contrast pairs by name or from a file.

    Parameters
    ----------
    source : str or path
        ``tiny-pairs``, or a CSV, TSV, JSON or JSONL file. A file has one pair a row (``clean`` or
        ``harmful``, ``corrupted`` or ``harmless``) or one prompt a row (``text``, a label as in
        prompt files, and ``pair``, which names the pair it belongs to). ``category``, ``split`` and
        ``family`` are optional.
    seed : int
        Of the splits, which are drawn by family where the file has none.
    name : str, optional
        Name of the set. Default: that of the source.

    Returns
    -------
    Pairs

    Raises
    ------
    PromptError
        If there is no such set or file, a column is missing, a pair has two prompts of one class,
        or splits share a prompt or a family.

    Examples
    --------
    >>> pairs = load_pairs("tiny-pairs")
    >>> pairs.splits, len(pairs.test) >= 120
    (['train', 'val', 'test'], True)
    """
    text = os.fspath(source)
    if text in EMBEDDED_PAIRS:
        path = Path(__file__).parent / "data" / f"{text}.jsonl"
    else:
        path = Path(text)
        if path.suffix.lower() not in FORMATS and kind_at(path) != "file":
            raise PromptError(
                f"there is no set of pairs or file {quoted(text)}; known are {', '.join(EMBEDDED_PAIRS)}, "
                f"files end in {', '.join(FORMATS)}."
            )
    rows = _labelled(read_rows(path), path.name)
    if not all(row["split"] for row in rows):
        rows = _split(rows, seed)
    pairs = Pairs.from_rows(rows, name=name or path.stem)
    check_disjoint(pairs.prompts())
    return pairs


def _labelled(raw: list[dict[str, Any]], file: str) -> list[dict[str, str]]:
    """Rows with the columns of pairs; ``split`` is empty where the file has none."""
    found = columns_of(raw)
    names = find(found, _ALIASES)
    if "pair" in names and not {"clean", "corrupted"} & set(names):
        return _joined(raw, names["pair"], file)
    if missing := [c for c in ("clean", "corrupted") if c not in names]:
        raise PromptError(
            f"{file} has no column {' and no column '.join(missing)}: it has {listed(found)}. "
            "Give one pair a row, with its harmful prompt in column clean and its harmless one in "
            "column corrupted; or one prompt a row, with a column pair that names its pair."
        )
    for i, row in enumerate(raw, start=1):
        for side in ("clean", "corrupted"):
            if not as_text(row.get(names[side]), names[side], f"{file}, row {i}"):
                raise PromptError(
                    f"{file}, row {i} has an empty {names[side]!r}; a pair needs both prompts."
                )
    harmful, harmless = (
        canonical_rows(raw, source=file, columns={"text": names[side]}, constants={"style": style})
        for side, style in (("clean", "toxic"), ("corrupted", "hard"))
    )
    return [_pair(a, b, a["family"]) for a, b in zip(harmful, harmless, strict=True)]


def _joined(raw: list[dict[str, Any]], column: str, file: str) -> list[dict[str, str]]:
    """Pairs from a file of prompts that say which pair they belong to."""
    groups: dict[str, list[dict[str, str]]] = {}
    for i, row in enumerate(canonical_rows(raw, source=file)):
        pair = as_text(raw[i].get(column), column, f"{file}, row {i + 1}")
        groups.setdefault(pair, []).append(row)
    own_families = "family" in {c.casefold() for c in raw[0]}
    rows = []
    for pair, members in groups.items():
        harms = sorted(m["harm"] for m in members)
        if not pair or harms != ["harmful", "harmless"]:
            raise PromptError(
                f"{file}: pair {quote(pair)} has {harms.count('harmful')} harmful and "
                f"{harms.count('harmless')} harmless prompts; a pair is one of each."
            )
        clean, corrupted = sorted(members, key=lambda m: m["harm"])
        if differing := [c for c in ("split", "category") if clean[c] != corrupted[c]]:
            raise PromptError(
                f"{file}: the prompts of pair {quote(pair)} differ in {differing[0]} "
                f"({quote(clean[differing[0]])} and {quote(corrupted[differing[0]])}); give both the same."
            )
        # a family of the file's own joins pairs; prompts without one are their own family
        family = clean["family"] if own_families else f"pair-{pair}"
        rows.append(_pair(clean, corrupted, family))
    return rows


def _pair(clean: dict[str, str], corrupted: dict[str, str], family: str) -> dict[str, str]:
    return {
        "clean": clean["text"],
        "corrupted": corrupted["text"],
        "category": clean["category"],
        "split": clean["split"],
        "family": family,
    }


def _split(rows: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """Rows with a split drawn for each: pairs that share a family or a prompt stay together."""
    sides = [
        {"text": row[side], "category": row["category"], "harm": harm, "family": row["family"]}
        for side, harm in (("clean", "harmful"), ("corrupted", "harmless"))
        for row in rows
    ]
    drawn = draw_splits(sides, seed=seed)
    return [{**row, "split": split} for row, split in zip(rows, drawn, strict=False)]
