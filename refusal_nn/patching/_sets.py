"""Exchanges of sets of heads, any sets, on all pairs of a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.patching._exchange import Exchange, Swap, Variant, chunks
from refusal_nn.patching._recovery import effects
from refusal_nn.tracing import ListedPasses, Request, Results

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.patching._baseline import Baseline
    from refusal_nn.store import Recorder

Head = tuple[int, int]
"""(layer, head)."""

SETS_PER_BATCH = 64
"""Sets a batch covers: the grain of a resume."""


def head_name(head: Head) -> str:
    """``a5.h2``, as the graph of the residual stream names it."""
    return f"a{head[0]}.h{head[1]}"


def as_variant(heads: Iterable[Head], positions: Sequence[int] | None) -> Variant:
    """The exchange of some heads' outputs, before the output projection mixes them."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        by_layer.setdefault(layer, []).append(head)
    where = None if positions is None else tuple(positions)
    return tuple(Swap("z", layer, where, tuple(found)) for layer, found in by_layer.items())


def exchange_sets(
    model: Model,
    base: Baseline,
    metric: Metric,
    interchange: str,
    sets: Sequence[Sequence[Head]],
    *,
    positions: Sequence[int] | None,
    rows: int,
    recorder: Recorder,
    stage: str,
) -> np.ndarray:
    """What the exchange of each set moves, in the metric's unit.

    Parameters
    ----------
    model, base, metric
        Pairs with the metric of their unpatched runs.
    interchange : str
        ``sufficiency`` or ``necessity``.
    sets : sequence of sets of heads
        None empty.
    positions : sequence of int, optional
        Tokens whose head outputs are exchanged, from the end of the prompt; all when None.
    rows : int
        Rows (set, pair) a pass.
    recorder, stage
        The stage is scratch: variable ``patched_metric`` over ``(head_set, prompt)``.

    Returns
    -------
    array, ``[pair, set]``
        Positive: towards the metric of the other prompt.
    """
    if not all(sets):
        raise RequestError("a set of heads to exchange is empty; name at least one head.")
    # sets that start at one block share passes, pairs of like length share padding
    by_start = np.argsort([min(layer for layer, _ in s) for s in sets], kind="stable")
    variants = [as_variant(sets[i], positions) for i in by_start]
    by_length = np.argsort(base.aligned.lengths, kind="stable")
    exchange = Exchange(model, base.aligned.take(by_length.tolist()), metric, interchange)
    n, m = len(by_length), len(sets)
    group = max(1, min(n, rows // min(m, model.n_heads)))
    template = xr.Dataset(
        {"patched_metric": (("head_set", "prompt"), np.full((m, n), np.nan))},
        coords={
            "head_set": np.arange(m),
            **{str(k): v for k, v in base.pairs[by_length].to_dataset().coords.items()},
        },
    )
    batches = [
        {
            "head_set": slice(a, min(a + SETS_PER_BATCH, m)),
            "prompt": slice(b, min(b + group, n)),
        }
        for a in range(0, m, SETS_PER_BATCH)
        for b in range(0, n, group)
    ]

    def requests(i: int) -> list[Request]:
        some, pairs = variants[batches[i]["head_set"]], range(n)[batches[i]["prompt"]]
        layers = sorted({swap.layer for variant in some for swap in variant})
        out = exchange.runs(pairs, ["z"], layers)
        for part in _of_one_start(some):
            out += [exchange.patched(pairs, v, layers) for v in chunks(part, len(pairs), rows)]
        return out

    def collect(i: int, results: Results) -> xr.Dataset:
        part = template.isel(batches[i])
        values = np.concatenate([r["metric"].double().numpy() for r in results[2:]])
        shape = (part.sizes["head_set"], part.sizes["prompt"])
        return part.assign(patched_metric=(("head_set", "prompt"), values.reshape(shape)))

    found = recorder.stage(stage, template, batches, ListedPasses(model, requests, collect))
    patched = np.empty((n, m))
    patched[np.ix_(by_length, by_start)] = found["patched_metric"].values.T
    return effects(patched, base.start_of(interchange), interchange)


def _of_one_start(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Neighbouring variants whose first exchange is at one block."""
    out: list[list[Variant]] = []
    last = -1
    for variant in variants:
        start = min(swap.layer for swap in variant)
        if start != last:
            out.append([])
            last = start
        out[-1].append(variant)
    return out
