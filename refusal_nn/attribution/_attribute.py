"""Attribution of a metric to the nodes or edges of the residual stream's graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from refusal_nn._batches import batches_of, rows_per_pass
from refusal_nn.attribution._exact import exact_edges, exact_nodes
from refusal_nn.attribution._gradient import gradient_passes, points
from refusal_nn.attribution._graph import EdgeGraph
from refusal_nn.attribution._metrics import Metric
from refusal_nn.errors import RequestError
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing._align import align

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

METHODS = ("atp", "eap", "eap-ig", "clean-corrupted", "exact")
LEVELS = ("edge", "node")


def attribute(
    model: Model,
    pairs: Pairs,
    metric: Metric,
    *,
    method: str = "eap-ig",
    level: str = "edge",
    steps: int = 5,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """How much each edge or node carries of a metric, for every pair.

    A score is the change of the metric when the edge alone carries what its writer writes on the
    corrupted prompt, everything else being that of the clean prompt: exactly, or to first order.

    Parameters
    ----------
    model : Model
    pairs : Pairs
        Clean (harmful) prompts and corrupted (harmless) counterparts of equal length.
    metric : Metric
    method : str
        ``exact``: every edge or node is patched and the metric measured. ``eap`` (edges) and ``atp``
        (nodes): the gradient at the clean run. ``eap-ig``: its mean over ``steps`` runs whose token
        embeddings are ``e' + k/steps (e - e')``, k = 1 to steps, from corrupted e' to clean e.
        ``clean-corrupted``: its mean over the clean and the corrupted run.
    level : {"edge", "node"}
        A node's score is the sum of the scores of the edges that leave it; ``exact`` patches them
        together.
    steps : int
        Of ``eap-ig``.
    batch_size : int, optional
        Rows a pass, a row being one pair at one step or one patch; default chosen from the model's
        size. The result does not depend on it beyond rounding.
    recorder : Recorder, optional
        Keeps the stages; default in memory.

    Returns
    -------
    xarray.Dataset
        ``edge_score`` ``(prompt, src, dst)``, NaN where there is no edge, or ``node_score``
        ``(prompt, src)``, in the metric's unit: negative where corrupting lowers the metric; their
        mean over pairs ``*_mean`` and its standard error ``*_se`` (of independent pairs; NaN for one
        pair); ``clean_metric`` and ``corrupted_metric`` ``(prompt)``. Attrs say the graph, metric,
        method and steps.

    Raises
    ------
    RequestError
        If the method, level, steps or metric is not possible.
    PromptError
        If the two prompts of a pair have different numbers of tokens.
    ModelError
        If heads of this model cannot be attributed to (see ``refusal_nn.tracing._blocks``).
    WorkError
        If gradients are not finite.

    Notes
    -----
    What a head writes is ``z W_O`` without the bias. Behind a norm (Gemma 2 and 3, OLMo 2) it is
    ``gain * z W_O / rms``, with the root mean square that the norm divides by in the same run: so the
    heads of a layer add up to what attention writes, in the clean and in the corrupted run.

    References
    ----------
    Nanda 2023 (AtP); Syed et al. 2023 (EAP); Hanna et al. 2024 (EAP-IG).
    """
    _check(method, level, steps)
    metric.check(model)
    if method in ("eap", "atp") and metric.kind == "kl":
        raise RequestError(
            f"the KL divergence from the clean run has gradient zero there, so {method} gives zero "
            "everywhere; use eap-ig, clean-corrupted or exact."
        )
    aligned = align(model, pairs)
    rec = recorder if recorder is not None else MemoryRecorder()
    rows = rows_per_pass(model) if batch_size is None else batch_size
    if rows < 1:
        raise RequestError(f"batch size must be at least 1, got {rows}.")
    graph = EdgeGraph.of(model.arch)
    template = _template(model, pairs, graph, level)
    if method == "exact":
        work = exact_edges if level == "edge" else exact_nodes
        found = work(model, aligned, metric, template, rows=rows, recorder=rec)
    else:
        fractions, weights = points(method, steps)
        batches = batches_of(len(pairs), max(1, rows // len(fractions)), "prompt")
        passes = gradient_passes(
            model,
            aligned,
            metric,
            template,
            batches,
            fractions=fractions,
            weights=weights,
            level=level,
        )
        found = rec.stage(f"{level}_scores", template, batches, passes)
    table = pairs.to_dataset()
    found = found.assign(
        {name: table[name] for name in ("clean_text", "corrupted_text")} | _summary(found, level)
    )
    found.attrs = {
        **model.identity(),
        **table.attrs,
        **graph.to_attrs(),
        **metric.to_attrs(),
        "method": method,
        "level": level,
        "steps": steps if method == "eap-ig" else 0,
        "ablation": "resample",
        "d_model": model.d_model,
    }
    return found


def _check(method: str, level: str, steps: int) -> None:
    if level not in LEVELS:
        raise RequestError(f"unknown level {level!r}; levels are {', '.join(LEVELS)}.")
    if method not in METHODS:
        raise RequestError(f"unknown method {method!r}; methods are {', '.join(METHODS)}.")
    if (method, level) in (("atp", "edge"), ("eap", "node")):
        other = {"atp": "eap", "eap": "atp"}[method]
        raise RequestError(
            f"{method} is not for level {level}; the same first-order method is called {other} there."
        )
    if steps < 1:
        raise RequestError(f"eap-ig needs at least 1 step, got {steps}.")


def _template(model: Model, pairs: Pairs, graph: EdgeGraph, level: str) -> xr.Dataset:
    dtype = np.float64 if model.dtype == torch.float64 else np.float32
    n = len(pairs)
    coords: dict[str, Any] = {str(k): v for k, v in pairs.to_dataset().coords.items()}
    coords["src"] = np.array(graph.src, dtype=object)
    scores: tuple[Any, ...]
    if level == "edge":
        coords["dst"] = np.array(graph.dst, dtype=object)
        shape = (n, len(graph.src), len(graph.dst))
        scores = (("prompt", "src", "dst"), np.full(shape, np.nan, dtype=dtype))
    else:
        scores = (("prompt", "src"), np.full((n, len(graph.src)), np.nan, dtype=dtype))
    metrics = {m: ("prompt", np.full(n, np.nan)) for m in ("clean_metric", "corrupted_metric")}
    return xr.Dataset({f"{level}_score": scores, **metrics}, coords=coords)


def _summary(found: xr.Dataset, level: str) -> dict[str, xr.DataArray]:
    """Mean over pairs and its standard error."""
    scores = found[f"{level}_score"].astype(np.float64)
    n = scores.sizes["prompt"]
    mean = scores.mean("prompt", skipna=False)
    one = xr.full_like(mean, np.nan)
    error = scores.std("prompt", ddof=1, skipna=False) / np.sqrt(n) if n > 1 else one
    return {f"{level}_score_mean": mean, f"{level}_score_se": error}
