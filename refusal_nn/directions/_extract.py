"""Candidate directions: difference in means at every layer and end-of-instruction position.

References
----------
Arditi et al. 2024, section 2.3: ``r[position, layer] = mean(harmful) - mean(harmless)`` of the
residual stream at the input of each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from refusal_nn.contrasts._refusal_tokens import discover_refusal_tokens, parse_tokens
from refusal_nn.directions._screen import HARM, refusal_scores, screened
from refusal_nn.errors import RequestError
from refusal_nn.prompts._labels import quote
from refusal_nn.runs import analysis
from refusal_nn.runs._batches import batches_of, rows_asked
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing import Answers, Capture, Passes, Work, pad, whole_numbers

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts
    from refusal_nn.tracing._jobs import Collect

METHODS = ("difference-in-means",)


@analysis(
    "direction-extract",
    splits={"prompts": "train"},
    keep=["sums"],
    section="refusal_nn.report._direction:part",
)
def extract(
    model: Model,
    prompts: Prompts,
    *,
    method: str = "difference-in-means",
    positions: Sequence[int] | None = None,
    refusal_tokens: Sequence[int | str] | str | None = None,
    screen: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """Candidate refusal directions.

    Parameters
    ----------
    model : Model
    prompts : Prompts
        Discovery prompts of both classes (``prompts.train``).
    method : {"difference-in-means"}
        How candidates are made.
    positions : sequence of int, optional
        Positions from the prompt's end, such as -3,-1; default: the end-of-instruction span.
    refusal_tokens : sequence, optional
        Token texts or ids; default: found from the model. A text is one token; they are found on these
        prompts.
    screen : bool
        Use only prompts that the model refuses or answers as their label says. A refusal score above 0
        counts as refusing, one below 0 as answering, as published.
    batch_size : int, optional
        Prompts a pass. The result does not depend on it beyond rounding.
    seed : int
        For the prompts that refusal tokens are discovered on.
    recorder : Recorder, optional
        Where stages are kept; default in memory.

    Returns
    -------
    xarray.Dataset
        ``direction``, ``mean_harmful``, ``mean_harmless`` ``(position, layer, d_model)`` float64,
        ``direction_norm`` ``(position, layer)``, and over ``(prompt)`` ``text``, ``refusal_score`` in
        nats and ``kept``. ``layer`` indexes ``resid_pre``: the input of that block.

    Raises
    ------
    RequestError
        If a class has no prompts, the method is unknown, or a position is not in every prompt.
    WorkError
        If screening leaves a class without prompts.

    References
    ----------
    Arditi et al. 2024, section 2.3.
    """
    if method not in METHODS:
        raise RequestError(f"unknown method {method!r}; methods are {', '.join(METHODS)}.")
    for harm in HARM:
        if not len(prompts.select(harm=harm)):
            raise RequestError(
                f"prompts {prompts.name!r} hold no {harm} prompts; a difference in means needs both."
            )
    rec = recorder if recorder is not None else MemoryRecorder()
    size = rows_asked(model, batch_size)
    where = _checked_positions(model, prompts, positions)
    tokens = parse_tokens(model, refusal_tokens) or discover_refusal_tokens(
        model, prompts, batch_size=batch_size, seed=seed, recorder=rec
    )
    scores = refusal_scores(model, prompts, tokens, batch_size=size, recorder=rec)
    kept = screened(model, scores, screen)
    sums = _sums(model, prompts[np.flatnonzero(kept)], where, size, rec)
    total = sums["activation_sum"].sum("block") / sums["n_prompts"].sum("block")
    means = {h: total.sel(harm=h, drop=True) for h in HARM}
    direction = means["harmful"] - means["harmless"]
    return xr.Dataset(
        {
            "direction": direction,
            "direction_norm": np.sqrt((direction**2).sum("d_model")),
            "mean_harmful": means["harmful"],
            "mean_harmless": means["harmless"],
            "refusal_score": scores["refusal_score"],
            "kept": ("prompt", kept),
            "text": prompts.to_dataset()["text"],
        },
        attrs={
            **model.identity(),
            **prompts.to_dataset().attrs,
            "seed": seed,
            "n_layers": model.n_layers,
            "refusal_tokens": [int(t) for t in tokens],
            "refusal_token_texts": [model.tokenizer.decode([t]) for t in tokens],
            "method": method,
            "site": "resid_pre",
            "screened": bool(screen),
        },
    )


def _checked_positions(
    model: Model, prompts: Prompts, positions: Sequence[int] | None
) -> tuple[int, ...]:
    """Positions that every prompt has; asked before anything is computed."""
    if positions is None:
        return model.chat.positions
    where = tuple(whole_numbers("positions", positions))
    if max(where) >= 0:
        raise RequestError(
            "positions count from the end of the prompt, so they are negative (-1 is its last "
            f"token); got {list(where)}."
        )
    if len(set(where)) < len(where):
        raise RequestError(f"positions {list(where)} name one twice; name each once.")
    rows = model.chat.tokens(prompts.texts)
    shortest = min(range(len(rows)), key=lambda i: len(rows[i]))
    if -min(where) > len(rows[shortest]):
        raise RequestError(
            f"position {min(where)} is not in every prompt: {quote(prompts.texts[shortest])} has "
            f"{len(rows[shortest])} tokens with its template."
        )
    return where


def _sums(
    model: Model,
    prompts: Prompts,
    positions: tuple[int, ...],
    batch_size: int,
    recorder: Recorder,
) -> xr.Dataset:
    """Per-batch sums of resid_pre by class, float64: what a bootstrap by block needs."""
    rows = model.chat.tokens(prompts.texts)
    harm = prompts.to_dataset()["harm"].values
    regions = batches_of(len(prompts), batch_size, "prompt")
    dims = ("block", "harm", "position", "layer", "d_model")
    shape = (len(regions), len(HARM), len(positions), model.n_layers, model.d_model)
    template = xr.Dataset(
        {
            "activation_sum": (dims, np.zeros(shape)),
            "n_prompts": (dims[:2], np.zeros(shape[:2], dtype=np.int64)),
        },
        coords={
            "block": np.arange(len(regions)),
            "harm": np.array(HARM, dtype=object),
            "position": list(positions),
            "layer": np.arange(model.n_layers),
        },
    )
    batches = batches_of(len(regions), 1, "block")

    def batch(i: int, work: Work) -> Collect:
        part = regions[i]["prompt"]
        members = np.stack([harm[part] == h for h in HARM])
        capture = Capture(
            "sum",
            "resid_pre",
            positions=positions,
            reduce="sum",
            args={"weights": torch.tensor(members, dtype=torch.float64)},
        )
        asked = work.forward(pad(rows[part], model.pad_token), [capture])

        def collect(answers: Answers) -> xr.Dataset:
            # [layer, harm, position, d] -> [harm, position, layer, d]
            total = answers[asked]["sum"].permute(1, 2, 0, 3).numpy()
            return template.isel(block=slice(i, i + 1)).assign(
                activation_sum=(dims, total[None]), n_prompts=(dims[:2], members.sum(1)[None])
            )

        return collect

    return recorder.stage("sums", template, batches, Passes(model, batch))
