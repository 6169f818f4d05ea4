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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from refusal_nn.prompts._tiny_bench import SEED, TEMPLATES, Pair, _digest, split_pairs
from refusal_nn.prompts._tiny_bench_words import CATEGORIES, WORDS

FAMILIES = 7
"""Contrasts per category and split."""
WORDINGS = 2
"""Templates used for each."""

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
    toxic = {
        category: [
            Pair(category, "toxic", verb, obj)
            for verb in WORDS[category].verbs
            for obj in WORDS[category].objects
        ]
        for category in CATEGORIES
    }
    used: set[str] = set()
    out: dict[str, list[tuple[Pair, Pair]]] = {}
    for split in ("test", "val", "train"):

        def free(request: str, here: str = split) -> bool:
            return request not in used and bench.get(request, "spare") in (here, "spare")

        out[split] = []
        for category in CATEGORIES:
            # requests that no model was trained on come first
            order = sorted(
                toxic[category],
                key=lambda p: (bench[p.request] == "spare", _digest(seed, p.family)),
            )
            found = 0
            for pair in order:
                if found == FAMILIES:
                    break
                partner = _partner(pair, free, encode, seed) if free(pair.request) else None
                if partner is not None:
                    used.update((pair.request, partner.request))
                    out[split].append((pair, partner))
                    found += 1
            if found < FAMILIES:
                raise ValueError(f"too few contrasts of equal length in {category} for {split}")
    return out


def rows(encode: Encode, seed: int = SEED) -> Iterator[dict[str, str]]:
    """Rows of ``tiny-pairs``: clean, corrupted, category, split, family."""
    chosen = contrasts(encode, seed)
    for split in ("train", "val", "test"):
        for pair, partner in chosen[split]:
            family = f"{pair.family}~{partner.object.replace(' ', '-')}"
            order = sorted(range(len(TEMPLATES)), key=lambda t: _digest(seed, family, TEMPLATES[t]))
            for template in order[:WORDINGS]:
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


def _partner(pair: Pair, free: Callable[[str], bool], encode: Encode, seed: int) -> Pair | None:
    """The harmless request that takes the place of a harmful one, or None if none is left."""
    objects = [(c, o) for c in CATEGORIES for o in WORDS[c].benign_objects]
    objects.sort(key=lambda co: (co[0] != pair.category, _digest(seed, pair.family, co[1])))
    for _, obj in objects:
        partner = Pair(pair.category, "hard", pair.verb, obj)
        if free(partner.request) and _replaces(pair, partner, encode):
            return partner
    return None


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
