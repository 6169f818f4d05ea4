"""The contrast pairs ``tiny-pairs``: one wording and verb, a harmful and a harmless object.

Both prompts of a pair are of the grammar of ``tiny-bench``, and under the tokenizer of
``tiny-refuser`` they have the same number of tokens and differ in the object's alone, so an
activation of one has its place in the run of the other. The harmless object is one of the
category's own where one of that length is left, else of another category's.

The *family* is the two requests: splits share neither the harmful nor the harmless one in any
wording, and a request that ``tiny-bench`` holds in one of its splits is in no other split here.

``python -m refusal_nn.prompts._tiny_pairs`` rewrites ``data/tiny-pairs.jsonl``; it must be run
again when the tokenizer changes. Order and choice come from SHA-256 of the seed and the words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

from refusal_nn.prompts._tiny_bench import (
    SEED,
    TEMPLATES,
    Pair,
    _digest,
    all_pairs,
    split_pairs,
    wordings,
)
from refusal_nn.prompts._tiny_bench_words import CATEGORIES, WORDS

FAMILIES = 7
"""Contrasts per category and split."""

Encode = Callable[[str], Sequence[int]]


def tokenizer_path() -> Path:
    """Where the tokenizer of ``tiny-refuser`` lies."""
    return Path(__file__).parents[1] / "models" / "organisms" / "tiny-refuser" / "tokenizer.json"


def data_path() -> Path:
    """Where the shipped file lies."""
    return Path(__file__).parent / "data" / "tiny-pairs.jsonl"


def contrasts(encode: Encode, seed: int = SEED) -> dict[str, list[tuple[Pair, Pair]]]:
    """The (harmful, harmless) requests of each split; each request occurs once.

    Parameters
    ----------
    encode : callable
        A text to its token ids, without special tokens.
    seed : int
        Seed of the choice.

    Raises
    ------
    ValueError
        If the word lists have too few objects of equal length.
    """
    bench = {p.request: split for split, pairs in split_pairs(seed).items() for p in pairs}
    toxic = [pair for pair in all_pairs() if pair.style == "toxic"]
    # requests that no model was trained on come first
    toxic.sort(key=lambda p: (bench[p.request] == "spare", _digest(seed, p.family)))
    used: set[str] = set()
    out: dict[str, list[tuple[Pair, Pair]]] = {}
    for split in ("test", "val", "train"):
        taken = used | {r for r, held in bench.items() if held not in (split, "spare")}
        out[split] = []
        for category in CATEGORIES:
            found: list[tuple[Pair, Pair]] = []
            for pair in toxic:
                if pair.category != category or pair.request in taken or len(found) == FAMILIES:
                    continue
                if partner := _partner(pair, taken, encode, seed):
                    taken |= {pair.request, partner.request}
                    found.append((pair, partner))
            if len(found) < FAMILIES:
                raise ValueError(f"too few contrasts of equal length in {category} for {split}")
            out[split] += found
        used.update(p.request for contrast in out[split] for p in contrast)
    return out


def rows(encode: Encode, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Rows of ``tiny-pairs``: clean, corrupted, category, split, family."""
    chosen = contrasts(encode, seed)
    for split in ("train", "val", "test"):
        for pair, partner in chosen[split]:
            family = f"{pair.family}~{partner.object.replace(' ', '-')}"
            for template in wordings(family, seed):
                yield {
                    "clean": pair.text(template),
                    "corrupted": partner.text(template),
                    "category": pair.category,
                    "split": split,
                    "family": family,
                }


def to_jsonl(seed: int = SEED) -> str:
    """The text of ``data/tiny-pairs.jsonl``: one JSON object a line."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path()))

    def encode(text: str) -> Sequence[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    return "".join(json.dumps(row) + "\n" for row in rows(encode, seed))


def _partner(pair: Pair, taken: Set[str], encode: Encode, seed: int) -> Pair | None:
    """The harmless request that takes the place of a harmful one, or None if none is left."""
    objects = [(c, o) for c in CATEGORIES for o in WORDS[c].benign_objects]
    objects.sort(key=lambda co: (co[0] != pair.category, _digest(seed, pair.family, co[1])))
    partners = (replace(pair, style="hard", object=obj) for _, obj in objects)
    return next(
        (p for p in partners if p.request not in taken and _replaces(pair, p, encode)), None
    )


def _replaces(pair: Pair, partner: Pair, encode: Encode) -> bool:
    """Whether the two differ in the tokens of the object alone, in every wording."""
    length = len(encode(f" {pair.object}"))
    if len(encode(f" {partner.object}")) != length:
        return False
    for template in range(len(TEMPLATES)):
        a, b = encode(pair.text(template)), encode(partner.text(template))
        if len(a) != len(b):
            return False
        differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if differ[-1] - differ[0] >= length:
            return False
    return True


def main() -> None:
    """Rewrite the shipped file."""
    data_path().write_text(to_jsonl(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
