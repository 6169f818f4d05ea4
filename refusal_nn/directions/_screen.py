"""Refusal scores of prompts as they are, and the prompts that the model treats as labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.contrasts._refusal_tokens import score_capture
from refusal_nn.errors import WorkError
from refusal_nn.prompts._labels import VOCABULARY
from refusal_nn.runs._batches import batches_of, prompt_labels
from refusal_nn.tracing import Answers, Capture, Passes, Work, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

HARM = VOCABULARY["harm"]


def refusal_scores(
    model: Model,
    prompts: Prompts,
    tokens: Sequence[int],
    *,
    batch_size: int,
    recorder: Recorder,
    stage: str = "scores",
    slack: bool = False,
) -> xr.Dataset:
    """Refusal score of each prompt on the unedited model: ``refusal_score(prompt)``, nats.

    With ``slack``, also ``kl_slack(prompt)``: how far below 0 its smoothed KL can be, nats.
    """
    rows = model.chat.tokens(prompts.texts)
    captures = {"refusal_score": score_capture(tokens)}
    if slack:
        captures["kl_slack"] = Capture(
            "slack", "logits", positions=(-1,), reduce="smoothed_kl_slack"
        )
    template = xr.Dataset(
        {name: ("prompt", np.full(len(prompts), np.nan)) for name in captures},
        coords=prompt_labels(prompts),
    )
    batches = batches_of(len(prompts), batch_size, "prompt")

    def batch(i: int, work: Work) -> Collect:
        asked = work.forward(
            pad(rows[batches[i]["prompt"]], model.pad_token), list(captures.values())
        )

        def collect(answers: Answers) -> xr.Dataset:
            found = answers[asked]
            return template.isel(batches[i]).assign(
                {name: ("prompt", found[c.name].numpy()) for name, c in captures.items()}
            )

        return collect

    return recorder.stage(stage, template, batches, Passes(model, batch))


def screened(model: Model, scores: xr.Dataset, screen: bool, role: str = "") -> np.ndarray:
    """The prompts that are kept, ``[prompt]`` bool: harmful ones the model refuses, harmless ones not.

    Parameters
    ----------
    model : Model
    scores : xarray.Dataset
        From :func:`refusal_scores`, of prompts of both classes.
    screen : bool
        Without it all are kept.
    role : str
        What the prompts are for, for the message.

    Raises
    ------
    WorkError
        If a class is left without prompts.
    """
    harmful = scores["harm"].values == "harmful"
    values = scores["refusal_score"].values
    kept = np.where(harmful, values > 0, values < 0) if screen else np.ones(len(values), bool)
    for harm, mask, does in zip(
        HARM, (harmful, ~harmful), ("complies with", "refuses"), strict=True
    ):
        if not (mask & kept).any():
            raise WorkError(
                f"screening left no {f'{harm} {role}'.strip()} prompts: model {model.name!r} {does} "
                "all of them. Use prompts it tells apart, other --refusal-tokens, or --no-screen."
            )
    return np.asarray(kept)
