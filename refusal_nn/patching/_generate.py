"""What a patched model says: completions of patched runs, judged, beside those of both prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn import judges, stats
from refusal_nn.attribution import Metric
from refusal_nn.contrasts._align import align
from refusal_nn.errors import RequestError
from refusal_nn.patching._exchange import Exchange, Swap, checked_interchange
from refusal_nn.patching._sets import Head, as_variant
from refusal_nn.responses._evaluate import (
    NLL_QUANTILE,
    REFERENCE_REQUEST,
    completion_nll,
    nll_requests,
)
from refusal_nn.runs._batches import rows_asked
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing import ListedPasses, Request, Results, completions, generate_request, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

UNPATCHED = ("harmful", "harmless")
"""Conditions that are always there: the prompts of the pair on their own."""

_DIMS = ("intervention", "prompt")


def generate(
    model: Model,
    pairs: Pairs,
    exchanges: Mapping[str, Sequence[Swap]],
    *,
    direction: str = "sufficiency",
    max_new_tokens: int = 32,
    reference_request: str = REFERENCE_REQUEST,
    confidence: float = 0.95,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
    stage: str = "completions",
) -> xr.Dataset:
    """Greedy completions with activations of the other prompt, and whether they refuse.

    The exchange is made on the prompt. A completion is coherent by the rule of
    :func:`refusal_nn.evaluate`, with the limit taken from completions of the harmless prompts; one
    that is not counts as neither refusal nor compliance.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    exchanges : mapping
        Name to what is exchanged, such as ``{"layer 4": [Swap("resid_pre", 4, (-1,))]}``; see also
        :func:`of_heads`.
    direction : {"sufficiency", "necessity"}
        Which prompt runs: the harmless or the harmful one.
    max_new_tokens : int
    reference_request : str
        The harmless request of the coherence statistic.
    confidence : float
    batch_size : int, optional
        Pairs a pass. The result does not depend on it.
    recorder : Recorder, optional
    stage : str
        Name of its stage in the recorder, which may hold several.

    Returns
    -------
    xarray.Dataset
        Over ``(intervention, prompt)``: ``completion``, ``n_tokens``, ``repetition``, ``nll``,
        ``coherent``, ``refused``; over ``intervention``: ``refusal_rate`` with ``_low``, ``_high``
        and ``_n``, and ``coherent_rate``. Interventions are ``harmful`` and ``harmless`` (the
        unpatched prompts), then those given.

    Raises
    ------
    RequestError
        If nothing is exchanged, or a name is taken.
    PromptError
        If pairs are not aligned.
    """
    checked_interchange(direction)
    if not exchanges or not all(exchanges.values()) or set(exchanges) & set(UNPATCHED):
        raise RequestError(
            f"exchanges {sorted(exchanges)}: name at least one, each with something to exchange, and "
            f"none {' or '.join(UNPATCHED)}."
        )
    rec = recorder if recorder is not None else MemoryRecorder()
    size = rows_asked(model, batch_size)
    names = [*UNPATCHED, *exchanges]
    aligned = align(model, pairs)
    n = len(pairs)
    # nothing is measured in these passes, so which metric it would be does not matter
    exchange = Exchange(model, aligned, Metric.kl(), direction)
    batches = [
        {"intervention": slice(i, i + 1), "prompt": slice(a, min(a + size, n))}
        for i in range(len(names))
        for a in range(0, n, size)
    ]
    shape = (len(names), n)
    labels = {
        "intervention": np.array(names, dtype=object),
        **{str(k): v for k, v in pairs.to_dataset().coords.items()},
    }
    template = xr.Dataset(
        {
            "completion_tokens": (
                (*_DIMS, "token"),
                np.full((*shape, max_new_tokens), -1, np.int32),
            ),
            "n_tokens": (_DIMS, np.zeros(shape, dtype=np.int64)),
        },
        coords=labels,
    )

    def requests(i: int) -> list[Request]:
        name = names[batches[i]["intervention"].start]
        group = range(n)[batches[i]["prompt"]]
        if name in UNPATCHED:
            side = aligned.clean_rows if name == "harmful" else aligned.corrupted_rows
            batch = pad([side[k] for k in group], model.pad_token)
            return [generate_request(model, batch, max_new_tokens=max_new_tokens)]
        variant = tuple(exchanges[name])
        layers = sorted({swap.layer for swap in variant})
        runs = exchange.runs(group, sorted({swap.site for swap in variant}), layers)
        patched = exchange.generated(group, [variant], layers, max_new_tokens=max_new_tokens)
        return [*runs, patched]

    def collect(i: int, results: Results) -> xr.Dataset:
        part = template.isel(batches[i]).copy(deep=True)
        new = completions(model, results[-1]["ids"])
        part["n_tokens"].values[0] = [len(c) for c in new]
        for row, completion in enumerate(new):
            part["completion_tokens"].values[0, row, : len(completion)] = completion
        return part

    found = rec.stage(stage, template, batches, ListedPasses(model, requests, collect))
    tokens = [
        row[:k].tolist()
        for row, k in zip(
            found["completion_tokens"].values.reshape(-1, max_new_tokens),
            found["n_tokens"].values.ravel(),
            strict=True,
        )
    ]
    nll = _nll(model, reference_request, tokens, labels, shape, batches, rec, f"{stage}_nll")
    texts = np.array([model.decode(t) for t in tokens], dtype=object)
    repetition = judges.repetition(tokens).reshape(shape)
    own = nll[UNPATCHED.index("harmless")]
    own = own[np.isfinite(own)]
    limit = float(np.quantile(own, NLL_QUANTILE)) if len(own) else float("inf")
    coherent = judges.coherent(repetition, nll, limit) & (found["n_tokens"].values > 0)
    refused = judges.substring(texts.tolist()).reshape(shape) & coherent
    rates = [stats.rate(r, cluster=pairs.family, confidence=confidence) for r in refused]
    table = pairs.to_dataset()
    return xr.Dataset(
        {
            "clean_text": table["clean_text"],
            "corrupted_text": table["corrupted_text"],
            "completion": (_DIMS, texts.reshape(shape)),
            "n_tokens": (_DIMS, found["n_tokens"].values),
            "repetition": (_DIMS, repetition),
            "nll": (_DIMS, nll),
            "coherent": (_DIMS, coherent),
            "refused": (_DIMS, refused),
            "refusal_rate": ("intervention", np.array([r.rate for r in rates])),
            "refusal_rate_low": ("intervention", np.array([r.low for r in rates])),
            "refusal_rate_high": ("intervention", np.array([r.high for r in rates])),
            "refusal_rate_n": ("intervention", np.array([r.n for r in rates])),
            "coherent_rate": ("intervention", coherent.mean(axis=1)),
        },
        coords=labels,
        attrs={
            **model.identity(),
            **table.attrs,
            "interchange": direction,
            "max_new_tokens": max_new_tokens,
            "nll_limit": limit,
            "reference_request": reference_request,
            "confidence": confidence,
        },
    )


def of_heads(heads: Iterable[Head], positions: Sequence[int] | None = None) -> tuple[Swap, ...]:
    """The exchange of some heads' outputs, for :func:`generate`.

    Parameters
    ----------
    heads : iterable of (layer, head)
    positions : sequence of int, optional
        From the end of the prompt; every token when None.

    Examples
    --------
    >>> of_heads([(5, 0), (5, 2)])
    (Swap(site='z', layer=5, positions=None, heads=(0, 2)),)
    """
    return as_variant(heads, positions)


def _nll(
    model: Model,
    reference_request: str,
    tokens: Sequence[Sequence[int]],
    labels: Mapping[str, object],
    shape: tuple[int, int],
    batches: list[dict[str, slice]],
    recorder: Recorder,
    stage: str,
) -> np.ndarray:
    """Mean NLL of every completion under the unedited model, ``[intervention, prompt]``."""
    (reference,) = model.chat.tokens([reference_request])
    template = xr.Dataset({"nll": (_DIMS, np.full(shape, np.nan))}, coords=labels)

    def of(i: int) -> list[Sequence[int]]:
        first, part = batches[i]["intervention"].start * shape[1], batches[i]["prompt"]
        return list(tokens[first + part.start : first + part.stop])

    def requests(i: int) -> list[Request]:
        return nll_requests(model, reference, of(i))

    def collect(i: int, results: Results) -> xr.Dataset:
        values = completion_nll(of(i), results)
        return template.isel(batches[i]).assign(nll=(_DIMS, values[None]))

    found = recorder.stage(stage, template, batches, ListedPasses(model, requests, collect))
    return np.asarray(found["nll"].values)
