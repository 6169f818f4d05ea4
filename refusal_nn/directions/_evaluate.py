"""What a chosen direction does on held-out prompts, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.directions._controls import random_directions
from refusal_nn.errors import RequestError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, Intervention
from refusal_nn.responses._evaluate import evaluate as evaluate_conditions

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts
    from refusal_nn.store import Recorder


def conditions(
    direction: np.ndarray, layer: int, *, n_prompts: int, controls: bool = True, seed: int = 0
) -> dict[str, list[Intervention]]:
    """The conditions a direction is tested under.

    ``baseline``; ``ablation`` at every block's input, attention and MLP output; ``addition`` at its
    layer; and the same two with random directions of equal norm, another draw for each prompt, so
    that the control is an average over directions and not one lucky draw.

    Parameters
    ----------
    direction : array, ``[d_model]``
    layer : int
        Block whose input it was extracted at.
    n_prompts : int
        Prompts it will be tested on.
    controls : bool
    seed : int
        Of the random directions.
    """
    out: dict[str, list[Intervention]] = {
        "baseline": [],
        "ablation": [DirectionalAblation(direction)],
        "addition": [ActivationAddition(direction, layers=[layer])],
    }
    if controls:
        random = random_directions(direction, n_prompts, seed=seed)
        out["random_ablation"] = [DirectionalAblation(random)]
        out["random_addition"] = [ActivationAddition(random, layers=[layer])]
    return out


def evaluate(
    model: Model,
    direction: xr.DataArray | np.ndarray,
    layer: int,
    prompts: Prompts,
    *,
    controls: bool = True,
    seed: int = 0,
    max_new_tokens: int = 64,
    refusal_tokens: Sequence[int] | None = None,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Behaviour of a chosen direction on test prompts, beside random directions of equal norm.

    Parameters
    ----------
    model : Model
    direction : array, ``[d_model]``
    layer : int
        Block whose input it was extracted at.
    prompts : Prompts
        Test prompts (``prompts.test``), of both classes.
    controls : bool
        Add the random directions.
    seed : int
        Of the random directions.
    max_new_tokens, refusal_tokens, batch_size, recorder
        As :func:`refusal_nn.evaluate`.

    Returns
    -------
    xarray.DataTree
        As :func:`refusal_nn.evaluate`, with conditions baseline, ablation, addition,
        random_ablation, random_addition.
    """
    vector = np.asarray(direction, dtype=np.float64)
    if vector.shape != (model.d_model,):
        raise RequestError(
            f"the direction has shape {vector.shape}, but model {model.name!r} has d_model "
            f"{model.d_model}."
        )
    return evaluate_conditions(
        model,
        prompts,
        conditions(vector, layer, n_prompts=len(prompts), controls=controls, seed=seed),
        max_new_tokens=max_new_tokens,
        refusal_tokens=refusal_tokens,
        batch_size=batch_size,
        recorder=recorder,
    )
