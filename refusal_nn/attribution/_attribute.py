"""Attribution of a metric to the nodes or edges of the residual stream's graph."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from refusal_nn.attribution._exact import exact_scores
from refusal_nn.attribution._gradient import gradient_passes, points_of
from refusal_nn.attribution._summary import summary
from refusal_nn.contrasts._align import align
from refusal_nn.contrasts._contrast import SIDES, Contrast, Measured
from refusal_nn.contrasts._metric import Metric, resolve_metric
from refusal_nn.errors import RequestError
from refusal_nn.models._blocks import block_places
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.runs import analysis
from refusal_nn.runs._batches import batches_of, rows_asked
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

_REGION_BYTES = 1 << 27
METHODS = ("atp", "eap", "eap-ig", "clean-corrupted", "exact")
LEVELS = ("edge", "node")


@analysis(
    "attribute-{level}s", splits={"pairs": "train"}, section="refusal_nn.report._attribution:part"
)
def attribute(
    model: Model,
    pairs: Pairs,
    metric: Metric | None = None,
    *,
    level: str = "edge",
    method: str = "eap-ig",
    steps: int = 5,
    check: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
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
    metric : Metric, optional
        Default: the log-odds of refusal tokens that are discovered on these pairs.
    level : {"edge", "node"}
        Score every edge, or every head and MLP. A node's score is the sum of the scores of the edges
        that leave it; ``exact`` patches them together.
    method : {"atp", "eap", "eap-ig", "clean-corrupted", "exact"}
        exact patches each one; the others are first-order (atp: nodes, eap: edges). ``exact`` measures
        the metric of each patch. ``eap`` and ``atp``: the gradient at the clean run. ``eap-ig``: its
        mean over ``steps`` runs whose token embeddings are ``e' + k/steps (e - e')``, k = 1 to steps,
        from corrupted e' to clean e. ``clean-corrupted``: its mean over the clean and the corrupted run.
    steps : int in [1, inf)
        Points between corrupted and clean embedding of eap-ig.
    check : bool
        Refuse pairs that the metric does not tell apart, or tells apart the wrong way.
    batch_size : int, optional
        Rows a pass, a row being one pair at one step or one patch; default chosen from the model's
        size. The result does not depend on it beyond rounding.
    seed : int
        For the prompts that refusal tokens are discovered on.
    recorder : Recorder, optional
        Keeps the stages; default in memory.

    Returns
    -------
    xarray.Dataset
        ``edge_score`` ``(prompt, src, dst)``, NaN where there is no edge, or ``node_score``
        ``(prompt, src)``, in the metric's unit: negative where corrupting lowers the metric; their
        mean over pairs ``*_mean`` and its standard error ``*_se`` (of independent families of
        pairs; NaN for one family); ``clean_metric`` and ``corrupted_metric`` ``(prompt)``. Attrs
        say the graph, metric, method and steps.

    Raises
    ------
    RequestError
        If the method, level, steps or metric is not possible.
    PromptError
        If the two prompts of a pair are not aligned (see :func:`refusal_nn.patching.align`), or
        the mean difference of the metric between clean and corrupted prompts cannot be told from
        0 or, with the refusal log-odds, is negative.
    ModelError
        If heads of this model cannot be attributed to (see ``refusal_nn.models._blocks``).
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
    # all that can be refused without a pass is, so that nothing half-made is left
    check_options(model, metric, method, level, steps)
    rows = rows_asked(model, batch_size)
    aligned = align(model, pairs)
    block_places(model)
    rec = recorder if recorder is not None else MemoryRecorder()
    metric = resolve_metric(model, metric, pairs, recorder=rec, batch_size=batch_size, seed=seed)
    contrast = Contrast(model, pairs, metric, aligned=aligned)
    graph = EdgeGraph.of(model.arch)
    template = _template(contrast, graph, level)
    if method == "exact":
        # before the many passes, from the two runs alone
        both = contrast.measured(rec, rows=rows, check=check)
        found = exact_scores(contrast, template, level, rows=rows, recorder=rec)
    else:
        points = points_of(method, steps)
        size = max(1, rows // len(points[0]))
        if batch_size is None:  # a model of many heads has more scores than activations
            size = min(size, max(1, _REGION_BYTES // template.isel(prompt=[0]).nbytes))
        batches = batches_of(len(pairs), size, "prompt")
        template = template.assign(
            {f"{side}_metric": ("prompt", np.full(len(pairs), np.nan)) for side in SIDES}
        )
        passes = gradient_passes(contrast, template, batches, points, level)
        found = rec.stage(f"{level}_scores", template, batches, passes)
        clean, corrupted = (found[f"{side}_metric"].values for side in SIDES)
        both = Measured(contrast, clean, corrupted)
        if check:
            both.check_told_apart()
    found = found.assign(both.variables() | summary(found, level, pairs.family))
    found.attrs = {
        **contrast.attrs(),
        **graph.to_attrs(),
        "method": method,
        "level": level,
        "steps": steps if method == "eap-ig" else 0,
        "ablation": "resample",
        "d_model": model.d_model,
    }
    return found


def check_options(model: Model, metric: Metric | None, method: str, level: str, steps: int) -> None:
    """Refuse options of :func:`attribute` that cannot be, before a pass is made.

    Parameters
    ----------
    model : Model
    metric : Metric or None
        None where it is still to be found: log-odds of refusal tokens.
    method, level, steps

    Raises
    ------
    RequestError
    """
    if metric is not None and not isinstance(metric, Metric):
        raise RequestError(
            f"the metric is a {type(metric).__name__}, not a Metric; make one with "
            "Metric.refusal_log_odds(tokens) or another of its constructors."
        )
    if level not in LEVELS:
        raise RequestError(f"unknown level {level!r}; levels are {', '.join(LEVELS)}.")
    if method not in METHODS:
        raise RequestError(f"unknown method {method!r}; methods are {', '.join(METHODS)}.")
    if (method, level) in (("atp", "edge"), ("eap", "node")):
        other = {"atp": "eap", "eap": "atp"}[method]
        raise RequestError(
            f"{method} is not for level {level}; the same first-order method is called {other} there."
        )
    count: Any = steps
    if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < 1:
        raise RequestError(f"eap-ig needs at least 1 step, a whole number, got {steps!r}.")
    if metric is None:
        return
    metric.check(model)
    if method in ("eap", "atp") and metric.kind == "kl":
        raise RequestError(
            f"the KL divergence from the clean run has gradient zero there, so {method} gives zero "
            "everywhere; use eap-ig, clean-corrupted or exact."
        )


def _template(contrast: Contrast, graph: EdgeGraph, level: str) -> xr.Dataset:
    dtype = np.float64 if contrast.model.dtype == torch.float64 else np.float32
    sides = {"src": graph.src, "dst": graph.dst} if level == "edge" else {"src": graph.src}
    shape = (len(contrast), *map(len, sides.values()))
    # one number that stands for all: a table for all prompts would not fit
    scores = (("prompt", *sides), np.broadcast_to(dtype(np.nan), shape))
    labels = {dim: np.array(names, dtype=object) for dim, names in sides.items()}
    return xr.Dataset({f"{level}_score": scores}, contrast.labels() | labels)
