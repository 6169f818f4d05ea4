"""What a patched model says: completions of patched runs, judged, beside those of both prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn._renamed import renamed_arguments
from refusal_nn.contrasts import Contrast, Metric
from refusal_nn.errors import RequestError
from refusal_nn.patching._exchange import SIDES_OF, Swap, checked_interchange, swap_edits
from refusal_nn.responses import (
    REFERENCE_REQUEST,
    Grid,
    complete,
    judge,
    nll_limit,
    rate_table,
)
from refusal_nn.runs._batches import rows_asked
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing import Capture, Handle, Work

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

UNPATCHED = ("harmful", "harmless")
"""Conditions that are always there: the prompts of the pair on their own."""


@renamed_arguments(direction="interchange")
def generate(
    model: Model,
    pairs: Pairs,
    exchanges: Mapping[str, Sequence[Swap]],
    *,
    interchange: str = "sufficiency",
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
    that is not counts as neither refusal nor compliance. Where no harmless prompt gets more than
    five tokens there is no limit: repetition decides alone, and ``nll_limit`` in the attrs is None.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    exchanges : mapping
        Name to what is exchanged, such as ``{"layer 4": [Swap("resid_pre", 4, (-1,))]}``; see also
        :func:`refusal_nn.patching.of_heads`.
    interchange : {"sufficiency", "necessity"}
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
    checked_interchange(interchange)
    if not exchanges or not all(exchanges.values()) or set(exchanges) & set(UNPATCHED):
        raise RequestError(
            f"exchanges {sorted(exchanges)}: name at least one, each with something to exchange, and "
            f"none {' or '.join(UNPATCHED)}."
        )
    # nothing is measured in these passes, so which metric it would be does not matter
    contrast = Contrast(model, pairs, Metric.kl())
    n = len(contrast)

    def ask(work: Work, name: str, part: slice) -> Handle:
        if name in UNPATCHED:
            prompts = contrast.batch("clean" if name == "harmful" else "corrupted", part)
            return work.generate(prompts, max_new_tokens=max_new_tokens)
        swaps = tuple(exchanges[name])
        layers = sorted({swap.layer for swap in swaps})
        sites = sorted({swap.site for swap in swaps})
        base, donor = SIDES_OF[interchange]
        held = [Capture(site, site, layers, keep=True) for site in sites]
        taken = work.forward(contrast.batch(donor, part), held)
        prompts = contrast.batch(base, part)
        edits = swap_edits(work, prompts, taken, layers, [swaps])
        return work.generate(prompts, edits, max_new_tokens=max_new_tokens)

    measured = complete(
        model,
        Grid([*UNPATCHED, *exchanges], contrast.labels(), n, rows_asked(model, batch_size)),
        ask,
        max_new_tokens=max_new_tokens,
        recorder=recorder if recorder is not None else MemoryRecorder(),
        reference_request=reference_request,
        stages=(stage, f"{stage}_nll"),
    )
    judged = judge(measured, nll_limit(measured["nll"].sel(intervention="harmless")))
    return judged.assign(
        **contrast.variables(),
        **rate_table(judged, (), np.ones(n, dtype=bool), confidence=confidence),
    ).assign_attrs(
        **model.identity(),
        **pairs.to_dataset().attrs,
        interchange=interchange,
        max_new_tokens=max_new_tokens,
        reference_request=reference_request,
        confidence=confidence,
    )
