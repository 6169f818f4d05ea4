"""Make ``broken_completions.jsonl``, on which the coherence gate is tested.

``python -m refusal_nn.models.organisms.make_broken_completions`` rewrites the file. One JSON object a
line: ``text``, ``token_ids`` (of tiny-refuser's tokenizer), ``kind``, ``broken``.

What is broken is decided without the gate. Repetition and shuffled tokens are broken by how they are
made. A completion under an over-strong edit is kept as broken when the grammar of tiny-refuser's
answers cannot produce it: it is neither the refusal nor the frame around a known request.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from refusal_nn.models.organisms._dialogue import compliance, refusal
from refusal_nn.models.organisms.check_tiny_refuser import DEFAULT_MODEL, load
from refusal_nn.prompts._tiny_bench import all_pairs, idiom_support, rows
from refusal_nn.testing import pipeline
from refusal_nn.testing.pipeline import Subject

DEFAULT_OUT = Path(__file__).parent / "broken_completions.jsonl"
EACH = 90
"""Broken completions of each kind."""
NORMAL = 150
"""Normal completions of each of two kinds."""
STRENGTHS = (40.0, 80.0, 160.0)
"""Norms of the vectors added, at one layer and all positions; the residual norm is about 10."""


def language() -> set[str]:
    """Every answer the grammar can produce."""
    pairs = (*all_pairs(), *idiom_support())
    return {compliance(pair) for pair in pairs} | {refusal()}


def completions(subject: Subject, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of the file.

    Parameters
    ----------
    subject : Subject
        ``tiny-refuser``.
    seed : int
        Seed of every choice.
    """
    draw = random.Random(seed)
    known = language()
    bench = [r for r in rows() if r["split"] == "train"]
    harmless = draw.sample([r["text"] for r in bench if r["harm"] == "harmless"], NORMAL)
    harmful = draw.sample([r["text"] for r in bench if r["harm"] == "harmful"], NORMAL)
    complied = pipeline.complete(subject, harmless)
    refused = pipeline.complete(subject, harmful)

    def row(ids: Sequence[int], kind: str, broken: bool) -> dict[str, Any]:
        text = subject.tokenizer.decode(list(ids), skip_special_tokens=True)
        return {"text": text, "token_ids": list(ids), "kind": kind, "broken": broken}

    yield from (row(ids, "compliance", False) for ids in complied)
    yield from (row(ids, "refusal", False) for ids in refused)
    for i in range(EACH):
        yield row(_loop(draw.choice(complied), 1 + i % 6, draw), "repetition", True)
    # a refusal is hardly longer than the five tokens whose likelihood the gate does not look at
    for _ in range(EACH):
        ids = list(draw.choice(complied))
        shuffled = list(ids)
        while shuffled == ids:
            draw.shuffle(shuffled)
        yield row(shuffled, "shuffled", True)
    overdriven = _overdriven(subject, harmless, draw)
    made = (row(ids, "over-strong edit", True) for ids in overdriven if ids)
    yield from islice((one for one in made if one["text"] not in known), EACH)


def _loop(ids: Sequence[int], period: int, draw: random.Random) -> list[int]:
    """The start of a completion, then a stretch of it over and over."""
    start = draw.randrange(2, len(ids) - period)
    stretch = list(ids[start : start + period])
    return [*ids[:start], *(stretch * (32 // period + 1))][:40]


def _overdriven(
    subject: Subject, instructions: Sequence[str], draw: random.Random
) -> Iterator[list[int]]:
    """Completions under additions of random vectors far larger than the residual stream, without end.

    Where few of them break the text, the STRENGTHS are too small.
    """
    width = subject.model.config.hidden_size
    while True:
        for strength in STRENGTHS:
            generator = torch.Generator().manual_seed(draw.randrange(2**31))
            vector = torch.randn(width, generator=generator)
            layer = draw.randrange(1, len(subject.blocks))
            with pipeline.added(subject, strength * vector / vector.norm(), layer):
                yield from pipeline.complete(subject, draw.sample(list(instructions), 6))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    args = parser.parse_args(argv)
    with args.out.open("w", encoding="utf-8", newline="\n") as stream:
        for row in completions(load(args.model)):
            stream.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
