"""Arditi et al.'s pipeline in plain PyTorch hooks: Llama-shaped models that are checked end to end.

Kept apart from :mod:`refusal_nn.tracing` on purpose: it is the second implementation that the first
is compared with. Everything is serial and short; nothing here is meant to be fast.

References
----------
Arditi et al. 2024, arXiv:2406.11717, and the repository andyrdt/refusal_direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refusal_nn.testing.hooks import add, everywhere, hooks, place, remove


@dataclass(frozen=True)
class Subject:
    """A loaded Llama-shaped model, its tokenizer and its refusal tokens."""

    model: Any
    tokenizer: Any
    refusal_tokens: tuple[int, ...]

    @property
    def blocks(self) -> Any:
        """The transformer blocks."""
        return self.model.model.layers

    def batch(self, instructions: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded ``input_ids`` and ``attention_mask``, (prompt, token)."""
        texts = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": i}], add_generation_prompt=True, tokenize=False
            )
            for i in instructions
        ]
        return dict(
            self.tokenizer(
                texts,
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                return_token_type_ids=False,
            )
        )

    def refusal_scores(self, instructions: Sequence[str]) -> Tensor:
        """Log-odds of the refusal tokens after each prompt, (prompt,), nats."""
        return refusal_score(last_logits(self, instructions), self.refusal_tokens)


def ablated(subject: Subject, direction: Tensor) -> AbstractContextManager[None]:
    """Remove a direction, (d_model,), from every block's input and every sublayer's output."""
    return hooks(subject.model, everywhere(subject.model, "llama", remove(direction)))


def added(subject: Subject, vector: Tensor, layer: int) -> AbstractContextManager[None]:
    """Add a vector, (d_model,), to the input of one block at all positions."""
    return hooks(subject.model, [(*place("llama", layer, "resid_pre"), add(vector))])


@torch.no_grad()
def mean_inputs(subject: Subject, instructions: Sequence[str], n_positions: int) -> Tensor:
    """Mean block input, float64 (position, layer, d_model), over the last positions."""
    states = subject.model(**subject.batch(instructions), output_hidden_states=True).hidden_states
    # the last entry is the normalised output of the model, the others are block inputs
    stacked = torch.stack(states[:-1], dim=2)[:, -n_positions:]
    return stacked.double().mean(dim=0)


@torch.no_grad()
def last_logits(subject: Subject, instructions: Sequence[str]) -> Tensor:
    """Logits after the last prompt token, float64 (prompt, token)."""
    return subject.model(**subject.batch(instructions)).logits[:, -1].double()


def refusal_score(logits: Tensor, tokens: Sequence[int], eps: float = 1e-8) -> Tensor:
    """Log-odds of the refusal tokens, (prompt,), nats; higher = more refusal."""
    p = logits.softmax(-1)[:, list(tokens)].sum(-1)
    return (p + eps).log() - (1 - p + eps).log()


def kl(base: Tensor, edited: Tensor, eps: float = 1e-6) -> Tensor:
    """KL(base || edited) over next tokens, (prompt,), nats."""
    p, q = base.softmax(-1), edited.softmax(-1)
    return (p * ((p + eps).log() - (q + eps).log())).sum(-1)


@torch.no_grad()
def complete(
    subject: Subject,
    instructions: Sequence[str],
    *,
    max_new_tokens: int = 40,
    batch_size: int = 150,
) -> list[list[int]]:
    """Greedy completions as token ids, without the end token."""
    rows: list[list[int]] = []
    for start in range(0, len(instructions), batch_size):
        batch = subject.batch(instructions[start : start + batch_size])
        out = subject.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        eos = subject.tokenizer.eos_token_id
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            rows.append(row[: row.index(eos)] if eos in row else row)
    return rows


@torch.no_grad()
def late_nll(
    subject: Subject, completions: Sequence[Sequence[int]], request: str, *, skip: int = 5
) -> list[float]:
    """Mean NLL, nats a token, of each completion from its sixth token on, after a fixed request.

    NaN where there is no sixth token.
    """
    prefix = subject.batch([request])["input_ids"][0].tolist()
    values: list[float] = []
    for start in range(0, len(completions), 200):
        rows = [list(c) for c in completions[start : start + 200]]
        width = max((len(c) for c in rows), default=0)
        pad = subject.tokenizer.pad_token_id
        # right padding after a common prefix needs no mask
        ids = torch.tensor([prefix + c + [pad] * (width - len(c)) for c in rows])
        log_p = subject.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
        nll = -log_p.gather(-1, ids[:, 1:, None])[..., 0][:, len(prefix) - 1 :]
        for row, c in zip(nll, rows, strict=True):
            values.append(row[skip : len(c)].mean().item() if len(c) > skip else float("nan"))
    return values


@dataclass(frozen=True)
class Candidate:
    """One candidate direction and its scores on the validation prompts."""

    position: int
    layer: int
    bypass: float
    induce: float
    kl: float
    vector: Tensor


def score_candidates(
    subject: Subject,
    *,
    harmful_train: Sequence[str],
    harmless_train: Sequence[str],
    harmful_val: Sequence[str],
    harmless_val: Sequence[str],
    n_positions: int = 3,
) -> list[Candidate]:
    """Difference-in-means candidates at every position and layer, scored as published."""
    means = mean_inputs(subject, harmful_train, n_positions) - mean_inputs(
        subject, harmless_train, n_positions
    )
    base = last_logits(subject, harmless_val)
    rows = []
    for p in range(n_positions):
        for layer in range(len(subject.blocks)):
            vector = means[p, layer].to(subject.model.dtype)
            with ablated(subject, vector):
                bypass = subject.refusal_scores(harmful_val)
                divergence = kl(base, last_logits(subject, harmless_val))
            with added(subject, vector, layer):
                induce = subject.refusal_scores(harmless_val)
            rows.append(
                Candidate(
                    position=p - n_positions,
                    layer=layer,
                    bypass=bypass.mean().item(),
                    induce=induce.mean().item(),
                    kl=divergence.mean().item(),
                    vector=vector,
                )
            )
    return rows


def admissible(candidates: Sequence[Candidate], n_layers: int) -> list[Candidate]:
    """Those the published defaults keep, best first (smallest bypass)."""
    kept = [
        c
        for c in candidates
        if c.layer < int(0.8 * n_layers)
        and c.kl <= 0.1
        and c.induce >= 0
        and c.bypass == c.bypass  # drops NaN
    ]
    return sorted(kept, key=lambda c: (c.bypass, c.position, c.layer))
