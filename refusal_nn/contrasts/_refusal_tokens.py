"""Which tokens begin a refusal, found from what the model does."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn import judges
from refusal_nn.errors import RequestError, WorkError
from refusal_nn.runs._batches import batches_of, prompt_labels, rows_asked
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing import Answers, Capture, Passes, Work, completions, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts

SHARE = 0.05
"""A refusal token begins at least this share of the refusals to harmful prompts."""


def discover_refusal_tokens(
    model: Model,
    prompts: Prompts,
    *,
    n: int = 64,
    max_new_tokens: int = 16,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> list[int]:
    """Token ids that begin this model's refusals.

    Greedy completions of up to ``n`` harmful and ``n`` harmless prompts are judged by the published
    substrings. A token counts if it begins at least 5 % of the refusals to harmful prompts, and
    more of them than of the answers to harmless prompts. (Arditi et al. 2024 name such tokens by
    hand for each model family: ``I`` for Llama, ``I`` and ``As`` for Qwen.)

    Parameters
    ----------
    model : Model
    prompts : Prompts
        Discovery prompts of both classes.
    n : int
        Prompts of each class.
    max_new_tokens : int
        Length of the completions judged.
    batch_size : int, optional
        Prompts a pass; default chosen from the model's size.
    seed : int
        For which prompts are used when there are more than ``n``.
    recorder : Recorder, optional
        Keeps the completions; default in memory.

    Raises
    ------
    WorkError
        If the model refuses none of the harmful prompts.
    """
    harmful, harmless = prompts.harmful, prompts.harmless
    if not len(harmful) or not len(harmless):
        raise RequestError(
            f"prompts {prompts.name!r} hold {len(harmful)} harmful and {len(harmless)} harmless "
            "prompts; refusal tokens are found by comparing both."
        )
    drawn = [c.take(min(n, len(c)), seed=seed).prompt_id for c in (harmful, harmless)]
    asked = prompts[np.flatnonzero(np.isin(prompts.prompt_id, np.concatenate(drawn)))]
    rows = model.chat.tokens(asked.texts)
    size = rows_asked(model, batch_size)
    template = xr.Dataset(
        {
            "completion": ("prompt", np.full(len(asked), "", dtype=object)),
            "first_token": ("prompt", np.full(len(asked), -1, dtype=np.int64)),
        },
        coords=prompt_labels(asked),
    )
    batches = batches_of(len(asked), size, "prompt")

    def batch(i: int, work: Work) -> Callable[[Answers], xr.Dataset]:
        part = batches[i]["prompt"]
        said = work.generate(pad(rows[part], model.pad_token), max_new_tokens=max_new_tokens)

        def collect(answers: Answers) -> xr.Dataset:
            new = completions(model, answers[said]["ids"])
            return template.isel(prompt=part).assign(
                completion=("prompt", np.array([model.decode(c) for c in new], dtype=object)),
                first_token=("prompt", np.array([c[0] if c else -1 for c in new])),
            )

        return collect

    found = (recorder or MemoryRecorder()).stage(
        "refusal_tokens", template, batches, Passes(model, batch)
    )
    refused = judges.substring(found["completion"].values.tolist())
    first = found["first_token"].values
    is_harmful = found["harm"].values == "harmful"
    refusals, answers = first[is_harmful & refused], first[~is_harmful & ~refused]
    if not len(refusals):
        raise WorkError(
            f"model {model.name!r} refused none of {int(is_harmful.sum())} harmful prompts, so its "
            "refusal tokens cannot be found; name them with --refusal-tokens, or use prompts it "
            "refuses."
        )
    tokens = []
    for token in np.unique(refusals):
        share = float((refusals == token).mean())
        elsewhere = float((answers == token).mean()) if len(answers) else 0.0
        if token >= 0 and share >= SHARE and share > elsewhere:
            tokens.append((share, int(token)))
    if not tokens:
        raise WorkError(
            f"no token begins refusals of model {model.name!r} more often than its answers; name the "
            "tokens with --refusal-tokens."
        )
    return [token for _, token in sorted(tokens, key=lambda t: (-t[0], t[1]))]


def score_capture(tokens: Sequence[int], name: str = "score") -> Capture:
    """The refusal score of each row: log-odds of the tokens at its last one, in nats.

    Parameters
    ----------
    tokens : sequence of int
    name : str
        Of the result, ``[row]``.
    """
    args = {"tokens": [int(t) for t in tokens]}
    return Capture(name, "logits", positions=(-1,), reduce="refusal_score", args=args)


def parse_tokens(model: Model, tokens: Sequence[int | str] | str | None) -> list[int] | None:
    """Refusal tokens given by a user: ids, or texts that are one token each.

    Raises
    ------
    RequestError
        If a text is not a single token of this model, or an id is outside its vocabulary or no whole
        number.
    """
    if tokens is None:
        return None
    items: list[Any] = [*(tokens.split(",") if isinstance(tokens, str) else tokens)]
    out = []
    for item in items:
        if isinstance(item, str) and not _is_id(item):
            ids = model.tokenizer(item, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise RequestError(
                    f"refusal token {item!r} is {len(ids)} tokens for {model.name!r}; give the first "
                    "one, or its id."
                )
            if ids[0] == model.tokenizer.unk_token_id:
                raise RequestError(
                    f"refusal token {item!r} is not in the vocabulary of {model.name!r}; give a text "
                    "that is, or an id."
                )
            out.append(int(ids[0]))
        else:
            out.append(int(item) if isinstance(item, str) else _whole(item))
    for token in out:
        if not 0 <= token < model.arch.vocab_size:
            raise RequestError(
                f"refusal token id {token} is outside the vocabulary of {model.name!r} "
                f"(0..{model.arch.vocab_size - 1})."
            )
    if not out:
        raise RequestError("no refusal token was given; leave the option out to discover them.")
    return out


def _is_id(text: str) -> bool:
    # isdigit alone also holds for characters such as "²", which are texts and no numbers
    return text.strip().isascii() and text.strip().isdigit()


def _whole(item: Any) -> int:
    try:
        if isinstance(item, bool | np.bool_):
            raise TypeError
        return operator.index(item)
    except TypeError as error:
        raise RequestError(
            f"refusal token {item!r} is neither a text nor a whole number; give token ids or texts of "
            "one token each."
        ) from error
