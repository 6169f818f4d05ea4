"""What a chosen direction does on held-out prompts, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.directions._controls import random_directions
from refusal_nn.directions._score_table import TABLE, as_dataset
from refusal_nn.directions._selection import Selection
from refusal_nn.errors import RequestError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, Intervention
from refusal_nn.responses import MAX_NEW_TOKENS
from refusal_nn.responses import evaluate as evaluate_conditions
from refusal_nn.runs import analysis, check_new

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
    max_new_tokens: int = MAX_NEW_TOKENS,
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


def _chosen(selected: Selection | xr.Dataset | xr.DataTree) -> xr.Dataset:
    """What was selected: ``direction``, and where and by which tokens in the attrs.

    Raises
    ------
    RequestError
        If it is no selection, or one in which nothing was selected.
    """
    table = as_dataset(selected.to_dataset() if isinstance(selected, Selection) else selected)
    attrs = table.attrs
    missing = [k for k in ("layer", "position", "refusal_tokens") if attrs.get(k) is None]
    if missing or "direction" not in table:
        raise RequestError(
            f"the selection holds no {(missing or ['direction'])[0]} "
            f"({attrs.get('reason') or 'it is none of direction select'}); give what direction "
            "select found on the result of direction score."
        )
    return table.assign_attrs({dim: int(attrs[dim]) for dim in TABLE})


def _interventions(selected: xr.Dataset) -> list[Intervention]:
    """What is recorded of a run: the direction's own; random ones follow from the seed."""
    found = _chosen(selected)
    vector = np.asarray(found["direction"].values, dtype=np.float64)
    own = conditions(vector, found.attrs["layer"], n_prompts=0, controls=False)
    return [edit for edits in own.values() for edit in edits]


@analysis(
    "direction-evaluate",
    runs={"selected": "direction-select"},
    new={"prompts": "discovery and selection"},
    splits={"prompts": "test"},
    section="refusal_nn.report._direction:part",
    interventions=lambda given: _interventions(given["selected"]),
)
def evaluate_selected(
    model: Model,
    selected: Selection | xr.Dataset | xr.DataTree,
    prompts: Prompts,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    controls: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Behaviour of the selected direction on prompts that took no part in finding it.

    Parameters
    ----------
    model : Model
    selected : Selection, Dataset or DataTree
        From :func:`select`, or a run of it: the direction, its layer and the refusal tokens.
    prompts : Prompts
        Test prompts (``prompts.test``), of both classes.
    max_new_tokens : int in [1, inf)
        Length of the completions. In tokens; they are greedy.
    controls : bool
        Test random directions of equal norm beside it.
    batch_size : int, optional
        Prompts a pass. The result does not depend on it.
    seed : int
        Of the random directions.
    recorder : Recorder, optional

    Returns
    -------
    xarray.DataTree
        As :func:`evaluate`, with attrs ``layer`` and ``position``.

    Raises
    ------
    PromptError
        If the test prompts share a prompt or family with discovery or selection.
    RequestError
        If nothing was selected, or the direction is of another width than the model's.
    """
    found = _chosen(selected)
    check_new(prompts, found, role="discovery and selection")
    tree = evaluate(
        model,
        found["direction"],
        found.attrs["layer"],
        prompts,
        controls=controls,
        seed=seed,
        max_new_tokens=max_new_tokens,
        refusal_tokens=[int(t) for t in found.attrs["refusal_tokens"]],
        batch_size=batch_size,
        recorder=recorder,
    )
    tree.attrs.update({dim: found.attrs[dim] for dim in TABLE})
    return tree
