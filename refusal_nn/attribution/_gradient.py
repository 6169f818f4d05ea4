"""Attribution by gradients: one pass without and one with, for each batch of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.contrasts._contrast import SIDES
from refusal_nn.errors import WorkError
from refusal_nn.interventions import Edit
from refusal_nn.models._blocks import block_places
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.shipped.edges import edge_scores, node_scores
from refusal_nn.tracing import Answers, Capture, Passes, Work

if TYPE_CHECKING:
    from refusal_nn.contrasts import Contrast
    from refusal_nn.tracing._jobs import Collect

_AFTER = {"edge": edge_scores.__name__, "node": node_scores.__name__}


def points_of(method: str, steps: int) -> tuple[list[float], list[float]]:
    """Where gradients are taken, and with what weights.

    Parameters
    ----------
    method : str
    steps : int
        Of ``eap-ig``.

    Returns
    -------
    fractions, weights : list of float
        Fractions of the way from the clean to the corrupted embedding. The clean run, 0, is always
        among them and comes last; weights sum to 1.
    """
    if method == "eap-ig":
        # Hanna et al. 2024, equation 3: k = 1..m of m from corrupted to clean
        return [1 - k / steps for k in range(1, steps + 1)], [1 / steps] * steps
    if method == "clean-corrupted":
        return [1.0, 0.0], [0.5, 0.5]
    return [0.0], [1.0]


def gradient_passes(
    contrast: Contrast,
    template: xr.Dataset,
    batches: list[dict[str, slice]],
    points: tuple[list[float], list[float]],
    level: str,
) -> Passes:
    """What each batch asks of the model, and the scores in its answers.

    Parameters
    ----------
    contrast : Contrast
    template : xarray.Dataset
        Of the stage: ``edge_score`` or ``node_score``, ``clean_metric``, ``corrupted_metric``.
    batches : list of dict
        Regions over ``prompt``.
    points : (list of float, list of float)
        See :func:`points_of`.
    level : {"edge", "node"}
    """
    (fractions, weights), model, metric = points, contrast.model, contrast.metric
    graph = EdgeGraph.of(model.arch)
    places = block_places(model)
    last = metric.reads_after(model) - 1
    live = [
        Capture("z", "z", live=True),
        Capture("mlp_out", "mlp_out", live=True),
        metric.readout(model, live=True),
    ]
    if level == "edge":
        sites = [p["parts"][0]["site"] for p in places[0]["projections"]]
        live += [Capture(f"projection{i}", site, live=True) for i, site in enumerate(sites)]
        live += [
            Capture("resid_pre", "resid_pre", live=True),
            Capture("mlp_reader", "mlp_in" if graph.parallel else "resid_mid", live=True),
            Capture("final", "resid_post", last, live=True),
        ]
    else:
        live += [
            Capture("resid_pre", "resid_pre", [0], live=True),
            Capture("attn_out", "attn_out", live=True),
        ]
    held = [
        Capture("embed", "embed", keep=True),
        Capture("input", "resid_pre", 0, keep=True),
        Capture("z", "z", keep=True),
        Capture("mlp", "mlp_out", keep=True),
        metric.readout(model, keep=True),
    ]

    def batch(i: int, work: Work) -> Collect:
        clean, corrupted = (contrast.batch(s, batches[i]["prompt"]) for s in SIDES)
        n = len(clean.lengths)
        other = work.forward(corrupted, held)
        edits = []
        if any(fractions):
            embeddings = other.held("embed", rows=list(range(n)) * len(fractions))
            part = np.repeat(fractions, n)
            edits.append(
                Edit(None, "embed", "interpolate", {"fraction": part, "value": embeddings})
            )
        args = {
            "places": places,
            "parallel": graph.parallel,
            "prefix": graph.prefix.tolist(),
            "n_final": 1 + (last + 1) * graph.writers_per_layer,
            "weights": weights,
            "metric": metric.plain(),
            "mask": clean.mask,
            **{name: other.held(name) for name in ("input", "z", "mlp")},
            "corrupted_readout": other.held("readout"),
        }
        rows = clean.repeat(len(fractions))
        asked = work.forward(rows, live, edits, gradient=True, after=(_AFTER[level], args))

        def collect(answers: Answers) -> xr.Dataset:
            found = {key: value.numpy() for key, value in answers[asked].items()}
            name = f"{level}_score"
            if not np.isfinite(found[name]).all():
                raise WorkError(
                    f"model {model.name!r} gave gradients that are not finite; load it in another "
                    "--dtype."
                )
            part = template.isel(batches[i])
            whole = np.full(part[name].shape, np.nan, dtype=template[name].dtype)
            whole[:, graph.mask if level == "edge" else slice(None)] = found[name]
            metrics = {f"{side}_metric": ("prompt", found[f"metric_{side}"]) for side in SIDES}
            return part.assign({name: (template[name].dims, whole), **metrics})

        return collect

    return Passes(model, batch)
