"""Which heads fall when another is exchanged, and what each writes straight to the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn import stats
from refusal_nn.contrasts._contrast import SIDES
from refusal_nn.contrasts._measured import metrics_of
from refusal_nn.models._blocks import block_places
from refusal_nn.patching._exchange import Exchange
from refusal_nn.patching._sets import Head, head_name, of_heads
from refusal_nn.runs._batches import batches_of
from refusal_nn.tracing import Answers, Capture, Passes, Work

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect


def cascade(
    base: Measured,
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
    base : Measured
    heads : sequence of Head
    positions : sequence of int or None
        Tokens whose head outputs are exchanged, from the end of the prompt; all when None.
    rows : int
        Rows a pass.
    recorder : Recorder

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
    layers = np.array([layer for layer, _ in heads])
    coords = {"src": names, "dst": names}
    later = xr.DataArray(layers[:, None] < layers, coords, ("src", "dst"))
    fallen = xr.full_like(later, np.nan, dtype=float)
    if later.any():
        found = _effects(base, heads, positions, rows, recorder)
        whole = found["effect_whole"].transpose("prompt", "dst").values
        sure = stats.mean(whole, cluster=base.pairs.family)
        # one family has no interval: then the effect itself must do
        low = np.where(np.isfinite(sure.low), sure.low, sure.value)
        below = np.where(np.atleast_1d(low) > 0, whole.mean(axis=0), np.nan)
        share = found["effect_fallen"].mean("prompt").transpose("src", "dst") / below
        fallen = share.reindex(src=names).where(later)
    return fallen.to_dataset(name="cascade")


def _effects(
    base: Measured,
    heads: Sequence[Head],
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
    sources = [head for head in heads if head[0] < max(layer for layer, _ in heads)]
    layers = tuple(sorted({layer for layer, _ in heads}))
    n = len(base)
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
    alone = [of_heads([head], positions) for head in heads]
    later = [[k for k, head in enumerate(heads) if head[0] > src[0]] for src in sources]

    def batch(i: int, work: Work) -> Collect:
        sites = {"residual": "resid_pre", "z": "z"}
        held = [Capture(name, site, list(layers), keep=True) for name, site in sites.items()]
        sides = {side: base.batch(side, batches[i]["prompt"]) for side in SIDES}
        clean = work.forward(sides["clean"], [*held, *base.held()])
        corrupted = work.forward(sides["corrupted"], held)
        into = {
            side: Exchange(work, base.metric, sides[side], *runs, clean, layers, layers)
            for side, runs in (("clean", (clean, corrupted)), ("corrupted", (corrupted, clean)))
        }
        # in both runs, one after the other: each head alone, then what is left of it with each source
        asked = [exchange.patched(alone) for exchange in into.values()]
        for src, after in zip(sources, later, strict=True):
            blocks = tuple(layer for layer in layers if layer > src[0])
            z = Capture("z", "z", list(blocks), keep=True)
            # blocks before the first exchange are skipped, so every source has a pass of its own
            donor = into["clean"].patched([of_heads([src], positions)], [z])
            for exchange in into.values():
                left = replace(exchange, donor=donor, taken=blocks)
                asked.append(left.patched([alone[k] for k in after]))

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(batches[i]).copy(deep=True)
            before = [values[batches[i]["prompt"]] for values in (base.clean, base.corrupted)]
            metrics = [metrics_of(answers, [p]).reshape(-1, len(before[0])) for p in asked]
            part["effect_whole"].values[...] = (before[0] - metrics[0] + metrics[1] - before[1]).T
            for s, after in enumerate(later):
                here, there = metrics[2 + 2 * s : 4 + 2 * s]
                gone = before[0] - here + metrics[1][after] - there
                part["effect_fallen"].values[s][:, after] = gone.T
            return part

        return collect

    return recorder.stage("cascade", template, batches, Passes(base.model, batch))


def direct_attribution(base: Measured, *, rows: int, recorder: Recorder) -> np.ndarray:
    """What each head's own write at the last token adds to the metric, ``[pair, layer, head]``.

    The difference between what the head writes on the harmful and on the harmless prompt, dotted
    with the metric's gradient at the residual stream that it reads, on the harmful prompt: exact in
    the head, first order in the final norm. In the metric's unit; heads that the metric reads before
    have 0, and so has every head with the metric ``kl``, which is flat there.

    References
    ----------
    Elhage et al. 2021, *A mathematical framework for transformer circuits* (direct paths).
    """
    model, metric = base.model, base.metric
    depth = metric.reads_after(model)
    writers = [place["writer"] for place in block_places(model)[:depth]]
    n = len(base)
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

    def batch(i: int, work: Work) -> Collect:
        some, last = batches[i]["prompt"], Capture("z", "z", layers, (-1,))
        corrupted = work.forward(base.batch("corrupted", some), [replace(last, keep=True)])
        captures = [
            last,
            Capture("final", "resid_post", depth - 1, live=True),
            metric.readout(model, live=True),
        ]
        args = {"metric": metric.plain(), "writers": writers, "z": corrupted.held("z")}
        clean = work.forward(
            base.batch("clean", some), captures, gradient=True, after=("direct_heads", args)
        )

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(batches[i]).copy(deep=True)
            direct = answers[clean]["direct"].double().numpy()
            part["direct_attribution"].values[:, :depth] = direct
            return part

        return collect

    found = recorder.stage("direct", template, batches, Passes(model, batch))
    return np.asarray(found["direct_attribution"].values)
