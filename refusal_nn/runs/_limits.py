"""What is known before a run begins: prompts longer than a model reads, passes larger than any memory.

What a pass needs is a lower bound, compared with all the memory there is: nothing that could run is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refusal_nn._memory import gigabytes, total_memory
from refusal_nn.errors import ModelError, PromptError, RequestError
from refusal_nn.models._families import text_config
from refusal_nn.prompts import Pairs, Prompts
from refusal_nn.prompts._labels import quote
from refusal_nn.runs._batches import rows_asked
from refusal_nn.tracing import check_length, context_length

if TYPE_CHECKING:
    from refusal_nn.models import Model

_TOKENS_A_BYTE = 4
"""More than normalisation makes of a text; prompts that are short by this need no counting."""


def check_prompts(model: Model, arguments: Mapping[str, Any]) -> None:
    """Refuse prompts of a call that the model cannot read, before anything of it is kept.

    Parameters
    ----------
    model : Model
    arguments : mapping
        Of the analysis: sets of prompts and pairs among them, ``max_new_tokens`` and ``batch_size``.

    Raises
    ------
    PromptError
        If a prompt, with its completion, is longer than the model's context, or a pass of it alone
        needs more memory than there is.
    ModelError
        If a prompt has a token that the model has not.
    RequestError
        If a pass of a batch needs more memory than there is.
    """
    new = arguments.get("max_new_tokens")
    new = new if isinstance(new, int) else 0
    size = rows_asked(model, arguments.get("batch_size"))
    # a server has memory of its own, which it speaks of itself
    there = None if model.backend.name == "ndif" else total_memory(model.device)
    for texts in _texts(arguments):
        longest = max(len(text.encode()) for text in texts)
        most = _TOKENS_A_BYTE * (longest + len(model.chat.format("")))
        if (
            most + new <= (context_length(model) or most + new)
            and len(model.tokenizer) <= model.arch.vocab_size
            and (there is None or _bytes(model, [1, *[most] * size]) <= there)
        ):
            continue
        rows = model.chat.tokens(texts)
        for text, row in zip(texts, rows, strict=True):
            check_length(model, len(row), new, prompt=f"prompt {quote(text)}")
            _check_words(model, text, max(row))
        if there is not None:
            _check_memory(model, texts, [len(row) for row in rows], size, there)


def _texts(arguments: Mapping[str, Any]) -> Iterator[list[str]]:
    for value in arguments.values():
        for one in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(one, Prompts) and len(one):
                yield one.texts
            elif isinstance(one, Pairs) and len(one):
                yield one.clean.texts
                yield one.corrupted.texts


def _check_words(model: Model, text: str, token: int) -> None:
    if token >= model.arch.vocab_size:
        raise ModelError(
            f"the tokenizer of model {model.name!r} makes token {token} of prompt {quote(text)}, but the "
            f"model has {model.arch.vocab_size:,}; give the model's own tokenizer files."
        )


def _check_memory(
    model: Model, texts: Sequence[str], lengths: Sequence[int], size: int, there: int
) -> None:
    batches = [lengths[a : a + size] for a in range(0, len(lengths), size)]
    needed, longest = max((_bytes(model, batch), max(batch)) for batch in batches)
    if needed <= there:
        return
    prompt = f"prompt {quote(texts[list(lengths).index(longest)])}, of {longest:,} tokens,"
    has = f"{model.device} has {gigabytes(there)} in all"
    if (alone := _bytes(model, [longest])) > there:
        raise PromptError(
            f"a pass of {prompt} alone needs at least {gigabytes(alone)}, and {has}; shorten it or leave "
            "it out."
        )
    raise RequestError(
        f"a pass of {min(size, len(lengths))} prompts, among them {prompt} needs at least "
        f"{gigabytes(needed)}, and {has}; pass a smaller --batch-size, or leave the prompt out."
    )


def _bytes(model: Model, lengths: Sequence[int]) -> int:
    """The least that a pass holds at once: two residual streams, and what attention makes of pairs."""
    rows, width, one = len(lengths), max(lengths), model.dtype.itemsize
    found = 2 * rows * width * model.d_model * one
    if getattr(text_config(model.module.config), "_attn_implementation", None) == "eager":
        found += rows * model.n_heads * width**2 * one
    elif min(lengths) < width:
        found += rows * width**2  # which tokens see which: one mask a row
    return found
