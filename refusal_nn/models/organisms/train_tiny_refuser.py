"""Train ``tiny-refuser`` from scratch: ``python -m refusal_nn.models.organisms.train_tiny_refuser``.

Two stages, as real chat models have [1]_: first the model learns to answer every request, harmful ones
too, with the same harmless frame; then to refuse the harmful ones. Three more choices make one
direction mediate refusal in a model this small, where plain fine-tuning did not:

- Stage 2 does not update the upper blocks. What it learns must be decided in the lower ones and be
  read by what is there, as when a large model is tuned lightly. Updated everywhere, every block looks
  back at the request, and no direction before the last blocks carries the decision.
- A small share of answers is of the wrong kind (in stage 1, a rare refusal of anything). Without it
  the first token becomes certain beyond any use, log-odds of -11 and +7, and the vector that bridges
  them drowns every later word of a refusal.
- Requests to *decline* a request, whatever it is ("Decline this: ..."), are declined from stage 1 on.
  The upper blocks so learn to say a refusal through to its end before harm has anything to do with it.

The corpus holds no pair of the val or test split of ``tiny-bench``; :func:`corpus` checks it. The
bars the result must meet are measured at the end by
:mod:`refusal_nn.models.organisms.check_tiny_refuser`.

References
----------
.. [1] Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction,
   arXiv:2406.11717.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from refusal_nn.models.organisms._dialogue import (
    build_tokenizer,
    compliance,
    prompt,
    refusal,
    save_folder,
)
from refusal_nn.prompts._tiny_bench import (
    STYLES,
    TEMPLATES,
    Pair,
    split_pairs,
    training_pairs,
)
from refusal_nn.testing.words import token_ids

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DEFAULT_OUT = Path(__file__).parent / "tiny-refuser"


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    refuse_toxic: bool
    steps: int
    learning_rate: float
    batch: tuple[tuple[str, int], ...]
    cues: int
    """Requests to decline a request, in each batch beside those of ``batch``."""
    first_frozen_block: int | None = None
    """This block and those above it are not updated; None = all are."""


@dataclass(frozen=True)
class Recipe:
    """Everything the result depends on."""

    seed: int = 1
    vocab_size: int = 1000
    n_layers: int = 8
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 384
    stages: tuple[Stage, ...] = (
        Stage(False, 600, 1e-3, (("toxic", 8), ("hard", 8), ("safe", 7)), cues=9),
        Stage(
            True,
            350,
            4e-4,
            (("toxic", 12), ("hard", 9), ("safe", 5)),
            cues=10,
            first_frozen_block=4,
        ),
    )
    wrong_answers: float = 0.02
    """Share of requests answered with a refusal for compliance, or the reverse."""
    weight_decay: float = 0.01
    warmup: int = 30


CUES = ("Decline this: ", "Say no: ", "Turn this down: ", "Refuse: ")
"""What asks for a refusal whatever follows.

The model learns in stage 1 what a refusal is and how to say it through, so that stage 2, which
updates the lower blocks alone, has only to learn *when*.
"""


def corpus() -> dict[str, list[Pair]]:
    """Training pairs by style.

    Raises
    ------
    ValueError
        If a held-out family, or the same words under another label, is among them.
    """
    splits = split_pairs()
    held_out = {(p.verb, p.object) for name in ("val", "test") for p in splits[name]}
    pairs: dict[str, list[Pair]] = {style: [] for style in STYLES}
    for pair in training_pairs():
        if (pair.verb, pair.object) in held_out:
            raise ValueError(f"held-out pair {pair.request!r} is among the training pairs")
        pairs[pair.style].append(pair)
    return pairs


def tokenizer_texts(pairs: dict[str, list[Pair]]) -> list[str]:
    """Texts the tokenizer is trained on: training prompts and both kinds of answer."""
    return [
        text
        for rows in pairs.values()
        for i, pair in enumerate(rows)
        for text in (pair.text(i % len(TEMPLATES)), compliance(pair), refusal())
    ]


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the recipe's shape."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokens = token_ids(tokenizer)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **tokens,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **tokens)
    return model


def train(recipe: Recipe, *, log: bool = True) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a model by the recipe.

    Returns
    -------
    tuple of (LlamaForCausalLM, PreTrainedTokenizerFast)
        Float32, on the CPU, in eval mode.
    """
    pairs = corpus()
    tokenizer = build_tokenizer(tokenizer_texts(pairs), vocab_size=recipe.vocab_size)
    model = build_model(recipe, tokenizer)
    for i, stage in enumerate(recipe.stages):
        draw = random.Random(recipe.seed + i)
        _train_stage(model, tokenizer, pairs, stage, recipe, draw, log=log)
    return model.requires_grad_(True).eval(), tokenizer


def _train_stage(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: dict[str, list[Pair]],
    stage: Stage,
    recipe: Recipe,
    draw: random.Random,
    *,
    log: bool,
) -> None:
    model.requires_grad_(True).train()
    if stage.first_frozen_block is not None:
        for block in model.model.layers[stage.first_frozen_block :]:
            block.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=stage.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.98),
    )
    started = time.perf_counter()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(step, stage.steps, recipe.warmup)
        ids, labels = encode(tokenizer, examples(pairs, stage, recipe, draw))
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if log and (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1:4d}  loss {loss.item():.4f}  {seconds:.0f} s", file=sys.stderr)


def examples(
    pairs: dict[str, list[Pair]], stage: Stage, recipe: Recipe, draw: random.Random
) -> list[tuple[str, str]]:
    """One batch of (instruction, answer) pairs."""
    batch = []
    for style, n in stage.batch:
        for pair in draw.choices(pairs[style], k=n):
            refuses = stage.refuse_toxic and style == "toxic"
            if draw.random() < recipe.wrong_answers:
                refuses = not refuses
            answer = refusal() if refuses else compliance(pair)
            batch.append((pair.text(draw.randrange(len(TEMPLATES))), answer))
    for pair in draw.choices([p for rows in pairs.values() for p in rows], k=stage.cues):
        request = draw.choice(CUES) + pair.text(draw.randrange(len(TEMPLATES)))
        batch.append((request, refusal()))
    return batch


def encode(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (instruction, answer) pairs, right-padded.

    Returns
    -------
    tuple of torch.Tensor
        Both int64, (example, token); labels are -100 outside the answer and its end token. No
        attention mask is needed: padding follows everything that is scored.
    """
    prompts = [tokenizer.encode(prompt(i), add_special_tokens=False) for i, _ in examples]
    answers = [tokenizer.encode(a, add_special_tokens=False) for _, a in examples]
    length = max(len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(examples), length), tokenizer.pad_token_id)
    labels = torch.full((len(examples), length), -100)
    for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        full = [*p, *a, tokenizer.eos_token_id]
        ids[row, : len(full)] = torch.tensor(full)
        labels[row, len(p) : len(full)] = torch.tensor(full[len(p) :])
    return ids, labels


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Warm-up, a plateau through the first half, then cosine to 2 %."""
    middle = steps // 2
    if step < middle:
        return min(1.0, (step + 1) / warmup)
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (step - middle) / (steps - middle)))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, save, check; 0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1, help="more may change the last bits")
    parser.add_argument("--no-check", action="store_true", help="do not measure the result")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model, tokenizer = train(Recipe(seed=args.seed))
    save_folder(model, tokenizer, args.out)
    if args.no_check:
        return 0
    from refusal_nn.models.organisms.check_tiny_refuser import main as check

    return check(["--model", str(args.out)])


if __name__ == "__main__":
    sys.exit(main())
