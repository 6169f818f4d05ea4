"""Which heads fall when another is exchanged, and what each writes straight to the metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn._batches import batches_of
from refusal_nn.patching._exchange import Exchange
from refusal_nn.patching._sets import Head, as_variant, head_name
from refusal_nn.tracing import Capture, Passes, Ref, Request, Results, forward_request, pad
from refusal_nn.tracing import _heads as _heads  # adds `direct_heads` and `overlap`
from refusal_nn.tracing._blocks import block_places

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.patching._baseline import Baseline
    from refusal_nn.store import Recorder


def cascade(
    model: Model,
    base: Baseline,
    metric: Metric,
    heads: Sequence[Head],
    *,
    positions: Sequence[int] | None,
    rows: int,
    recorder: Recorder,
) -> xr.Dataset:
    """How much of each later head's difference between the prompts goes when a head is exchanged.

    On the harmful prompt, head ``src`` gets its output of the harmless run. Head ``dst`` has fallen
    (1) if its output is then as different from the unpatched one, along the difference between the
    two prompts, as the harmless run's is; it has not (0) if it is as before. Outputs are compared
    at all tokens, pairs by the ratio of sums.

    Parameters
    ----------
    model, base, metric, positions, rows, recorder
        As in :func:`refusal_nn.patching.refusal_heads`.
    heads : sequence of Head

    Returns
    -------
    xarray.Dataset
        ``cascade`` ``(src, dst)`` over the heads; NaN where ``dst`` is not in a later block.
    """
    heads = sorted(heads)
    names = np.array([head_name(head) for head in heads], dtype=object)
    fallen = np.full((len(heads), len(heads)), np.nan)
    coords = {"src": names, "dst": names}
    layers = sorted({layer for layer, _ in heads})
    sources = [head for head in heads if head[0] < layers[-1]] if heads else []
    if sources:
        found = _overlaps(model, base, metric, heads, sources, layers, positions, rows, recorder)
        total = found.sum("prompt")
        share = 1 - total["overlap"].values / np.where(total["whole"] > 0, total["whole"], np.nan)
        for i, src in enumerate(heads):
            for j, dst in enumerate(heads):
                if dst[0] > src[0]:
                    fallen[i, j] = share[sources.index(src), j]
    return xr.Dataset({"cascade": (("src", "dst"), fallen)}, coords=coords)


def _overlaps(
    model: Model,
    base: Baseline,
    metric: Metric,
    heads: Sequence[Head],
    sources: Sequence[Head],
    layers: Sequence[int],
    positions: Sequence[int] | None,
    rows: int,
    recorder: Recorder,
) -> xr.Dataset:
    """``overlap`` and ``whole`` ``(src, prompt, dst)``: the stage ``cascade``."""
    exchange = Exchange(model, base.aligned, metric, "necessity")
    size = max(1, rows // len(sources))
    n = len(base.pairs)
    shape = (len(sources), n, len(heads))
    template = xr.Dataset(
        {name: (("src", "prompt", "dst"), np.zeros(shape)) for name in ("overlap", "whole")},
        coords={
            **base.labels(),
            "src": np.array([head_name(head) for head in sources], dtype=object),
            "dst": np.array([head_name(head) for head in heads], dtype=object),
        },
    )
    batches = batches_of(n, size, "prompt")
    z = Capture("z", "z", list(layers), keep=True)

    def requests(i: int) -> list[Request]:
        group = range(n)[batches[i]["prompt"]]
        clean = pad([base.aligned.clean_rows[k] for k in group], model.pad_token)
        out = [*exchange.runs(group, ["z"], layers), forward_request(model, clean, [z])]
        args = {"here": Ref(2, "z"), "there": Ref(1, "z"), "mask": clean.mask}
        # blocks before the first exchange are skipped, so every source has a pass of its own
        for src in sources:
            later = [layer for layer in layers if layer > src[0]]
            at = [list(layers).index(layer) for layer in later]
            out.append(
                exchange.patched(
                    group,
                    [as_variant([src], positions)],
                    layers,
                    captures=[Capture("z", "z", later)],
                    after=("overlap", {**args, "layers": at}),
                )
            )
        return out

    def collect(i: int, results: Results) -> xr.Dataset:
        part = template.isel(batches[i]).copy(deep=True)
        for s, (src, result) in enumerate(zip(sources, results[3:], strict=True)):
            later = [layer for layer in layers if layer > src[0]]
            for j, (layer, head) in enumerate(heads):
                for name in ("overlap", "whole"):
                    if layer > src[0]:
                        value = result[name][later.index(layer), :, head]
                        part[name].values[s, :, j] = value.double().numpy()
        return part

    return recorder.stage("cascade", template, batches, Passes(model, requests, collect))


def direct_attribution(
    model: Model, base: Baseline, metric: Metric, *, rows: int, recorder: Recorder
) -> np.ndarray:
    """What each head's own write at the last token adds to the metric, ``[pair, layer, head]``.

    The difference between what the head writes on the harmful and on the harmless prompt, dotted
    with the metric's gradient at the residual stream that it reads, on the harmful prompt: exact in
    the head, first order in the final norm. In the metric's unit; heads that the metric reads before
    have 0, and so has every head with the metric ``kl``, which is flat there.

    References
    ----------
    Elhage et al. 2021, *A mathematical framework for transformer circuits* (direct paths).
    """
    depth = metric.reads_after(model)
    writers = [place["writer"] for place in block_places(model)[:depth]]
    n = len(base.pairs)
    shape = (n, model.n_layers, model.n_heads)
    dims = ("prompt", "layer", "head")
    template = xr.Dataset(
        {"direct_attribution": (dims, np.zeros(shape))},
        coords={
            **base.labels(),
            "layer": np.arange(model.n_layers),
            "head": np.arange(model.n_heads),
        },
    )
    batches = batches_of(n, max(1, rows // 4), "prompt")
    layers = list(range(depth))

    def requests(i: int) -> list[Request]:
        group = range(n)[batches[i]["prompt"]]
        sides = (base.aligned.corrupted_rows, base.aligned.clean_rows)
        corrupted, clean = (pad([side[k] for k in group], model.pad_token) for side in sides)
        captures = [
            Capture("z", "z", layers, (-1,)),
            Capture("final", "resid_post", depth - 1, live=True),
            metric.readout(model, live=True),
        ]
        args = {"metric": metric.plain(), "writers": writers, "z": Ref(0, "z")}
        return [
            forward_request(model, corrupted, [Capture("z", "z", layers, (-1,), keep=True)]),
            forward_request(model, clean, captures, gradient=True, after=("direct_heads", args)),
        ]

    def collect(i: int, results: Results) -> xr.Dataset:
        part = template.isel(batches[i]).copy(deep=True)
        part["direct_attribution"].values[:, :depth] = results[-1]["direct"].double().numpy()
        return part

    found = recorder.stage("direct", template, batches, Passes(model, requests, collect))
    return np.asarray(found["direct_attribution"].values)
