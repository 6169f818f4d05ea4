"""Exact exchange of single attention heads, both ways, with a permutation test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xarray as xr

from refusal_nn import stats
from refusal_nn._renamed import renamed_arguments
from refusal_nn.contrasts import Contrast, resolve_metric
from refusal_nn.errors import RequestError
from refusal_nn.patching._exchange import INTERCHANGES, checked_interchange
from refusal_nn.patching._recovery import recovery_table
from refusal_nn.patching._sets import HeadExchanges
from refusal_nn.patching._where import blocks, checked_pairs, from_the_end
from refusal_nn.runs._batches import rows_asked
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured, Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs


@renamed_arguments(directions="interchange")
def heads(
    model: Model,
    pairs: Pairs,
    *,
    interchange: Sequence[str] = INTERCHANGES,
    metric: Metric | None = None,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    screen: bool = True,
    correction: str = "max-t",
    n_permutations: int = 9999,
    confidence: float = 0.95,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """How much of the difference between two prompts each attention head carries on its own.

    A head's output in one prompt's run, before the output projection mixes the heads, is replaced
    by its output in the other prompt's run (an *interchange*).

    Parameters
    ----------
    model : Model
    pairs : Pairs
    interchange : sequence of str
        ``sufficiency``: the harmless run gets the harmful run's head; ``necessity``: the harmful run
        gets the harmless one's.
    metric : Metric, optional
        Default: log-odds of the refusal tokens, found from the model's own refusals.
    positions : sequence of int, optional
        Tokens at which the head is exchanged, from the end of the prompt; all when None.
    layers : sequence of int, optional
        Default every block that the metric can see.
    screen : bool
        With the refusal log-odds: leave out pairs that the model does not treat as labelled.
    correction : {"max-t", "holm", "bh"}
        For the number of heads and directions tested; see :func:`refusal_nn.stats.sign_flip`.
    n_permutations : int
    confidence : float
    batch_size : int, optional
        Rows (head, pair) a pass. The result does not depend on it.
    seed : int
        Of the bootstrap, the permutations and the prompts refusal tokens are found from.
    recorder : Recorder, optional

    Returns
    -------
    xarray.Dataset
        ``recovery`` ``(interchange, prompt, layer, head)``: share of the pair's difference that the
        exchange moves, 0 none, 1 all; ``recovery_mean`` ``(interchange, layer, head)`` with ``_low``
        and ``_high``; ``head_p`` and ``head_p_adjusted``: one-sided sign-flip test, by family, that
        the exchange moves the metric towards the other prompt; ``clean_metric``,
        ``corrupted_metric`` and the texts ``(prompt)``.

    Raises
    ------
    PromptError, RequestError
        As :func:`positions`.

    References
    ----------
    arXiv 2604.04385 (interchange of heads between paired prompts, both ways, permutation null).
    """
    ways = [checked_interchange(way) for way in interchange]
    if not ways or len(set(ways)) < len(ways):
        raise RequestError(f"interchange {list(interchange)}: name at least one, each once.")
    rec = recorder if recorder is not None else MemoryRecorder()
    rows = rows_asked(model, batch_size)
    aligned = checked_pairs(model, pairs, metric, positions, layers)
    chosen_metric = resolve_metric(
        model, metric, pairs, recorder=rec, batch_size=batch_size, seed=seed
    )
    chosen = blocks(model, chosen_metric, layers)
    whole = Contrast(model, pairs, chosen_metric, aligned=aligned)
    base = whole.measured(rec, rows=rows, stage="baseline", screen=screen)
    where = from_the_end(positions)
    return head_table(
        base,
        HeadExchanges(where, rows, rec).singles(base, ways, chosen),
        correction=correction,
        n_permutations=n_permutations,
        confidence=confidence,
        seed=seed,
    ).assign_attrs(
        **whole.attrs(),
        positions=[] if where is None else where,
        n_layers=model.n_layers,
        n_pairs=len(base),
        dropped_pairs=list(base.dropped),
    )


def head_table(
    base: Measured,
    effect: xr.DataArray,
    *,
    correction: str,
    n_permutations: int,
    confidence: float,
    seed: int,
) -> xr.Dataset:
    """Recovery of single heads with intervals and tests, from effects of every pair.

    Parameters
    ----------
    base : Measured
    effect : xarray.DataArray
        ``(prompt, interchange, layer, head)``.
    correction, n_permutations, confidence, seed
        As :func:`heads`.
    """
    test = stats.sign_flip(
        effect.values,
        cluster=base.pairs.family,
        correction=correction,  # type: ignore[arg-type]
        n_permutations=n_permutations,
        seed=seed,
    )
    dims = effect.dims[1:]
    return (
        recovery_table(base, effect, confidence=confidence, seed=seed)
        .assign(head_p=(dims, test.p), head_p_adjusted=(dims, test.p_adjusted))
        .assign_attrs(test=test.method)
    )
