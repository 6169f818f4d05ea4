"""Scores of every candidate direction: bypass, induce, KL, as one batched sweep.

A candidate that one criterion has ruled out is not measured on the next.

References
----------
Arditi et al. 2024, section 2.3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts._refusal_tokens import parse_tokens
from refusal_nn.directions._score_table import whole_labels
from refusal_nn.directions._screen import HARM, refusal_scores, screened
from refusal_nn.directions._sweep import Sweep
from refusal_nn.directions._thresholds import (
    INDUCE_MIN,
    KL_MAX,
    LAYER_FRACTION,
    checked_thresholds,
    first_late_layer,
)
from refusal_nn.errors import RequestError
from refusal_nn.runs import analysis, check_new, used
from refusal_nn.runs._batches import prompt_labels, rows_asked
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts


@analysis(
    "direction-score",
    runs={"candidates": "direction-extract"},
    new={"prompts": "discovery"},
    splits={"prompts": "val"},
    section="refusal_nn.report._direction:part",
)
def score(
    model: Model,
    candidates: xr.Dataset,
    prompts: Prompts,
    *,
    kl_max: float = KL_MAX,
    induce_min: float = INDUCE_MIN,
    layer_fraction: float = LAYER_FRACTION,
    exhaustive: bool = False,
    refusal_tokens: Sequence[int | str] | str | None = None,
    screen: bool = True,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """Bypass, induce and KL of each candidate.

    *Bypass*: mean refusal score of harmful prompts under directional ablation (lower is better).
    *Induce*: mean refusal score of harmless prompts under activation addition at the candidate's
    layer (higher is better). *KL*: mean divergence of the ablated from the unedited next-token
    distribution on harmless prompts (lower is better).

    Parameters
    ----------
    model : Model
    candidates : xarray.Dataset
        From :func:`extract`: ``direction(position, layer, d_model)``.
    prompts : Prompts
        Selection prompts of both classes (``prompts.val``), disjoint from the discovery prompts.
    kl_max : float
        Largest KL, in nats. A candidate that a threshold rules out is not measured further; their
        defaults are the published ones.
    induce_min : float
        Least induce score.
    layer_fraction : float in (0, 1]
        Layers from int(fraction x layers) on are left out.
    exhaustive : bool
        Measure every candidate on every criterion.
    refusal_tokens : sequence, optional
        Default: those the candidates were extracted with.
    screen : bool
        Use only prompts that the model refuses or answers as their label says. A refusal score above 0
        counts as refusing, one below 0 as answering.
    batch_size : int, optional
        Rows (candidate, prompt) a pass.
    recorder : Recorder, optional

    Returns
    -------
    xarray.Dataset
        ``bypass``, ``induce`` (nats, log-odds), ``kl`` (nats) ``(position, layer)``, NaN where not
        measured; ``bypass_per_prompt``, ``induce_per_prompt``, ``kl_per_prompt``
        ``(position, layer, prompt)``; ``dropped_by`` ``(position, layer)``: the criterion that
        ruled a candidate out, or ``""``; ``direction``; ``text``, ``refusal_score`` and ``kept``
        ``(prompt)``; ``used_text`` and ``used_family``: the discovery prompts, which later ones must
        differ from. Layers ascend, whatever their order in the candidates.

    Raises
    ------
    RequestError
        If the candidates do not fit the model or lack labels, a threshold is no number, or a class
        has no prompts.
    PromptError
        If the selection prompts share a prompt or a family with the discovery prompts.
    WorkError
        If screening leaves a class without prompts.
    """
    _check_candidates(model, candidates)
    checked_thresholds(kl_max, induce_min, layer_fraction)
    check_new(prompts, candidates, role="discovery")
    rec = recorder if recorder is not None else MemoryRecorder()
    tokens = parse_tokens(model, refusal_tokens)
    if tokens is None:
        if "refusal_tokens" not in candidates.attrs:
            raise RequestError("the candidates name no refusal tokens; pass refusal_tokens.")
        tokens = [int(t) for t in candidates.attrs["refusal_tokens"]]
    rows = rows_asked(model, batch_size)
    harm = prompts.to_dataset()["harm"].values
    if missing := [name for name in HARM if name not in harm]:
        raise RequestError(f"there are no {missing[0]} selection prompts; both classes are needed.")
    base = refusal_scores(
        model, prompts, tokens, batch_size=rows, recorder=rec, stage="baseline", slack=True
    )
    kept = screened(model, base, screen, "selection")
    harmful, harmless = (np.flatnonzero(kept & (harm == name)) for name in HARM)
    direction = candidates["direction"].transpose("layer", "position", "d_model").sortby("layer")
    sweep = Sweep(model, direction, prompts, tokens, rows, rec)

    n_layers = int(candidates.attrs.get("n_layers", model.n_layers))
    late = sweep.layers >= first_late_layer(layer_fraction, n_layers)
    dropped = np.where(late, "late layer", "").astype(object)

    def alive() -> np.ndarray:
        return np.flatnonzero((dropped == "") | exhaustive)

    def drop(criterion: str, measured: xr.DataArray, passes: np.ndarray) -> None:
        out = measured["candidate"].values[~passes]
        dropped[out[dropped[out] == ""]] = criterion

    induce = sweep.induce(alive(), harmless)
    drop("induce", induce, induce.mean("prompt").values >= induce_min)
    kl = sweep.kl(alive(), harmless, None if exhaustive else kl_max, base["kl_slack"].values)
    drop("kl", kl, kl.mean("prompt", skipna=False).values <= kl_max)
    bypass = sweep.bypass(alive(), harmful)

    measured = {"bypass": (bypass, harmful), "induce": (induce, harmless), "kl": (kl, harmless)}
    data: dict[str, Any] = {}
    for name, (found, columns) in measured.items():
        values = np.full((dropped.size, len(prompts)), np.nan)
        values[np.ix_(found["candidate"].values, columns)] = found.values
        values = values.reshape(*direction.shape[:2], -1)
        data[name] = (("layer", "position"), values.take(columns, axis=-1).mean(axis=-1))
        data[f"{name}_per_prompt"] = (("layer", "position", "prompt"), values)
    data |= {
        "dropped_by": (("layer", "position"), dropped.reshape(direction.shape[:2])),
        "refusal_score": base["refusal_score"],
        "kept": ("prompt", kept),
        "text": prompts.to_dataset()["text"],
        "direction": direction,
        **{str(name): x for name, x in used([candidates]).data_vars.items()},
    }
    return (
        xr.Dataset(data, prompt_labels(prompts))
        .transpose("position", "layer", ...)
        .assign_attrs(
            **model.identity(),
            **prompts.to_dataset().attrs,
            n_layers=n_layers,
            refusal_tokens=tokens,
            kl_max=kl_max,
            induce_min=induce_min,
            layer_fraction=layer_fraction,
            exhaustive=exhaustive,
            screened=bool(screen),
        )
    )


def _check_candidates(model: Model, candidates: xr.Dataset) -> None:
    if "direction" not in candidates:
        held = ", ".join(map(str, candidates))
        raise RequestError(
            f"the candidates hold no variable 'direction' (they hold {held}); give the result of "
            "direction extract."
        )
    for dim in ("position", "layer", "d_model"):
        if dim not in candidates["direction"].dims:
            raise RequestError(
                f"the candidates' direction has no dim {dim!r} (it has "
                f"{', '.join(map(str, candidates['direction'].dims))}); give the result of direction "
                "extract, or expand_dims."
            )
    for dim in ("position", "layer"):
        whole_labels(candidates, dim, "the candidates")
    width = candidates.sizes.get("d_model")
    if width != model.d_model or int(candidates["layer"].max()) >= model.n_layers:
        raise RequestError(
            f"the candidates (d_model {width}, layers up to {int(candidates['layer'].max())}) are "
            f"of another model than {model.name!r} (d_model {model.d_model}, {model.n_layers} "
            "layers)."
        )
