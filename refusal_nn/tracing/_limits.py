"""How many tokens a model reads: known before a pass, so checked before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from refusal_nn.errors import PromptError
from refusal_nn.models._families import text_config

if TYPE_CHECKING:
    from refusal_nn.models import Model

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_STRETCHED = ("yarn", "linear", "dynamic")
"""Kinds of rotary scaling whose factor the declared length leaves out."""


def context_length(model: Model) -> int | None:
    """Tokens that a model reads, prompt and completion together; None where it has no limit."""
    config = text_config(model.module.config)
    declared = [getattr(config, name, None) for name in _CONTEXT]
    found = [n for n in declared if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    if not found:
        return None
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # a model with layers of two kinds has parameters of each
    each = [rotary, *(v for v in rotary.values() if isinstance(v, Mapping))]
    factors = [
        float(one["factor"])
        for one in each
        if one.get("rope_type", one.get("type")) in _STRETCHED and one.get("factor")
    ]
    return int(found[0] * max([1.0, *factors]))


def check_length(model: Model, tokens: int, new: int = 0, *, prompt: str = "a prompt") -> None:
    """Refuse a prompt that is longer than a model reads.

    Parameters
    ----------
    model : Model
    tokens : int
        Of the prompt.
    new : int
        To be generated after it.
    prompt : str
        Which one, for the message.

    Raises
    ------
    PromptError
        If there are more than the model's context length.
    """
    limit = context_length(model)
    if limit is None or tokens + max(0, new - 1) <= limit:  # the last new token is not read
        return
    if tokens > limit:
        raise PromptError(
            f"{prompt} has {tokens:,} tokens, but the context of model {model.name!r} is {limit:,}; "
            "shorten it or leave it out."
        )
    raise PromptError(
        f"{prompt} has {tokens:,} tokens, which with {new:,} new ones is more than the context of model "
        f"{model.name!r}, {limit:,}; pass --max-new-tokens {limit - tokens + 1} or fewer, or shorten it."
    )
