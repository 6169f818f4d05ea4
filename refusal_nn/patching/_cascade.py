"""Which heads fall when another is exchanged, and what each writes straight to the metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn import stats
from refusal_nn.models._blocks import block_places
from refusal_nn.patching._exchange import Exchange
from refusal_nn.patching._measured import needs_clean_run
from refusal_nn.patching._sets import Head, as_variant, head_name
from refusal_nn.runs._batches import batches_of
from refusal_nn.shipped import heads as _heads  # noqa: F401 - adds direct_heads to AFTER
from refusal_nn.tracing import Capture, ListedPasses, Ref, Request, Results, forward_request, pad

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.patching._baseline import Baseline
    from refusal_nn.store import Recorder

_HELD = (("residual", "resid_pre"), ("z", "z"))


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
    """How much of what each later head does for the metric goes when a head is exchanged.

    On the harmful prompt, head ``src`` gets its output of the harmless run, and the output that head
    ``dst`` then has is put, nothing else, into the unpatched harmful run and into the harmless one
    (path patching). ``dst`` has fallen (1) if it then does what its output of the harmless run does,
    and stands (0) if it does what its own does: the change of the metric is taken over both runs,
    so a head that only adds to what others do already, or only works with them, counts, too. Dimensions
    of its output that nothing reads do not count; nor does what ``src`` does to readers of ``dst``.

    Parameters
    ----------
    model, base, metric, positions, rows, recorder
        As in :func:`refusal_nn.patching.refusal_heads`.
    heads : sequence of Head

    Returns
    -------
    xarray.Dataset
        ``cascade`` ``(src, dst)`` over the heads; NaN where ``dst`` is not in a later block, or does
        nothing for the metric on its own, by an interval over families that does not lie above 0.

    References
    ----------
    Wang et al. 2022, *Interpretability in the wild* (path patching); Goldowsky-Dill et al. 2023.
    """
    heads = sorted(heads)
    names = np.array([head_name(head) for head in heads], dtype=object)
    fallen = np.full((len(heads), len(heads)), np.nan)
    coords = {"src": names, "dst": names}
    layers = sorted({layer for layer, _ in heads})
    sources = [head for head in heads if head[0] < layers[-1]] if heads else []
    if sources:
        found = _effects(model, base, metric, heads, sources, layers, positions, rows, recorder)
        whole = found["effect_whole"].transpose("prompt", "dst").values
        sure = stats.mean(whole, cluster=base.pairs.family)
        # one family has no interval: then the effect itself must do
        low = np.where(np.isfinite(sure.low), sure.low, sure.value)
        below = np.where(np.atleast_1d(low) > 0, whole.mean(axis=0), np.nan)
        share = found["effect_fallen"].mean("prompt").transpose("src", "dst").values / below
        for i, src in enumerate(heads):
            for j, dst in enumerate(heads):
                if dst[0] > src[0]:
                    fallen[i, j] = share[sources.index(src), j]
    return xr.Dataset({"cascade": (("src", "dst"), fallen)}, coords=coords)


_CLEAN, _CORRUPTED = 0, 1


def _effects(
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
    """What each head does for the metric in both runs, and what of it goes: the stage ``cascade``.

    Returns
    -------
    xarray.Dataset
        ``effect_whole`` ``(prompt, dst)``, in the metric's unit; ``effect_fallen`` ``(src, prompt, dst)``.
    """
    into = {
        _CLEAN: Exchange(model, base.aligned, metric, "necessity"),
        _CORRUPTED: Exchange(model, base.aligned, metric, "sufficiency"),
    }
    n = len(base.pairs)
    size = max(1, rows // len(heads))
    shape = (len(sources), n, len(heads))
    template = xr.Dataset(
        {
            "effect_whole": (("prompt", "dst"), np.zeros(shape[1:])),
            "effect_fallen": (("src", "prompt", "dst"), np.zeros(shape)),
        },
        coords={
            **base.labels(),
            "src": np.array([head_name(head) for head in sources], dtype=object),
            "dst": np.array([head_name(head) for head in heads], dtype=object),
        },
    )
    batches = batches_of(n, size, "prompt")
    alone = [as_variant([head], positions) for head in heads]
    later = [[k for k, head in enumerate(heads) if head[0] > src[0]] for src in sources]

    def requests(i: int) -> list[Request]:
        group = range(n)[batches[i]["prompt"]]
        held = [Capture(name, site, list(layers), keep=True) for name, site in _HELD]
        held_clean = [*held, metric.readout(model, keep=True)] if needs_clean_run(metric) else held
        out = [
            forward_request(model, pad([side[k] for k in group], model.pad_token), captures)
            for side, captures in (
                (base.aligned.clean_rows, held_clean),
                (base.aligned.corrupted_rows, held),
            )
        ]
        for run, other in ((_CLEAN, _CORRUPTED), (_CORRUPTED, _CLEAN)):
            out.append(into[run].patched(group, alone, layers, base=run, donor=other, clean=_CLEAN))
        for src, after in zip(sources, later, strict=True):
            blocks = [layer for layer in layers if layer > src[0]]
            z = Capture("z", "z", blocks, keep=True)
            donor = len(out)
            # blocks before the first exchange are skipped, so every source has a pass of its own
            out.append(
                into[_CLEAN].patched(group, [as_variant([src], positions)], layers, captures=[z])
            )
            variants = [alone[k] for k in after]
            for run in (_CLEAN, _CORRUPTED):
                out.append(
                    into[run].patched(
                        group, variants, layers, base=run, donor=donor, taken=blocks, clean=_CLEAN
                    )
                )
        return out

    def collect(i: int, results: Results) -> xr.Dataset:
        part = template.isel(batches[i]).copy(deep=True)
        pairs = part.sizes["prompt"]
        # in the order of requests: (harmful, harmless) for the whole, then after each source's run
        metrics = [
            r["metric"].double().numpy().reshape(-1, pairs) for r in results if "metric" in r
        ]
        clean, corrupted = (values[batches[i]["prompt"]] for values in (base.clean, base.corrupted))
        part["effect_whole"].values[...] = (clean - metrics[0] + metrics[1] - corrupted).T
        for s, after in enumerate(later):
            here, there = metrics[2 + 2 * s : 4 + 2 * s]
            gone = clean - here + metrics[1][after] - there
            part["effect_fallen"].values[s][:, after] = gone.T
        return part

    return recorder.stage("cascade", template, batches, ListedPasses(model, requests, collect))


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

    found = recorder.stage("direct", template, batches, ListedPasses(model, requests, collect))
    return np.asarray(found["direct_attribution"].values)
