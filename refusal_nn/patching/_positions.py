"""Exact activation patching over sites, blocks and token positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn._renamed import renamed_arguments
from refusal_nn.contrasts import Contrast, resolve_metric
from refusal_nn.models.sites import WRITES
from refusal_nn.patching._exchange import Swap, Variant, checked_interchange, patched_metrics
from refusal_nn.patching._recovery import effects, recovery_table
from refusal_nn.patching._where import blocks, checked_pairs, checked_positions, checked_sites
from refusal_nn.runs._batches import rows_asked
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured, Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

LAYERS_PER_BATCH = 8
"""Blocks a batch covers: what is held for it is as many residual streams and site activations."""

_DIMS = ("prompt", "site", "layer", "position")


@renamed_arguments(direction="interchange")
def positions(
    model: Model,
    pairs: Pairs,
    *,
    sites: Sequence[str] = WRITES,
    interchange: str = "sufficiency",
    cumulative: bool = False,
    metric: Metric | None = None,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    screen: bool = True,
    confidence: float = 0.95,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """How much of the difference between two prompts one activation carries, everywhere.

    Each (site, block, position) of one prompt's run is replaced by its value in the other prompt's
    run, and the metric of what follows is measured exactly, nothing linearised.

    Parameters
    ----------
    model : Model
    pairs : Pairs
        Of equal length token by token; see :func:`refusal_nn.patching.align`.
    sites : sequence of str
        Sites of a block without heads: ``resid_pre``, ``attn_out``, ``mlp_out`` and so on.
    interchange : {"sufficiency", "necessity"}
        Sufficiency: the harmless run gets the harmful run's activation. Necessity: the harmful run
        gets the harmless one's.
    cumulative : bool
        Replace the site at a position in all the blocks up to and including ``layer`` at once.
    metric : Metric, optional
        Default: log-odds of the refusal tokens, found from the model's own refusals.
    positions : sequence of int, optional
        From the end of the prompt; default from where pairs begin to differ to the last token.
    layers : sequence of int, optional
        Default every block that the metric can see.
    screen : bool
        With the refusal log-odds: leave out pairs that the model does not treat as labelled.
    confidence : float
    batch_size : int, optional
        Rows (variant, pair) a pass. The result does not depend on it.
    seed : int
        Of the bootstrap, and of which prompts refusal tokens are found from.
    recorder : Recorder, optional

    Returns
    -------
    xarray.Dataset
        ``recovery`` ``(prompt, site, layer, position)``: share of the pair's difference in the
        metric that the patch moves, 0 none, 1 all, in either direction; ``patched_metric`` of the
        same dims; ``recovery_mean`` ``(site, layer, position)``, a ratio of means, with ``_low`` and
        ``_high`` from a paired bootstrap over families; ``clean_metric``, ``corrupted_metric``,
        ``clean_text`` and ``corrupted_text`` ``(prompt)``.

    Raises
    ------
    PromptError
        If pairs are not aligned, the model treats none as labelled, or their difference in the
        metric cannot be told from 0.
    RequestError
        If a site, position, layer, interchange or metric is not there.

    References
    ----------
    Heimersheim and Nanda 2024, *How to use and interpret activation patching*.
    """
    checked_interchange(interchange)
    sites = checked_sites(model, sites)
    rec = recorder if recorder is not None else MemoryRecorder()
    rows = rows_asked(model, batch_size)
    aligned = checked_pairs(model, pairs, metric, positions, layers)
    chosen_metric = resolve_metric(
        model, metric, pairs, recorder=rec, batch_size=batch_size, seed=seed
    )
    chosen = blocks(model, chosen_metric, layers)
    whole = Contrast(model, pairs, chosen_metric, aligned=aligned)
    base = whole.measured(rec, rows=rows, stage="baseline", screen=screen)
    where = checked_positions(base.aligned, positions)
    patched = _sweep(base, interchange, sites, chosen, where, cumulative, rows, rec)
    effect = patched.copy(data=effects(base, patched.values, interchange))
    return (
        recovery_table(base, effect, confidence=confidence, seed=seed)
        .assign(patched_metric=patched)
        .assign_attrs(
            **whole.attrs(),
            interchange=interchange,
            cumulative=bool(cumulative),
            n_layers=model.n_layers,
            n_pairs=len(base),
            dropped_pairs=list(base.dropped),
        )
    )


def _sweep(
    base: Measured,
    interchange: str,
    sites: Sequence[str],
    layers: Sequence[int],
    where: Sequence[int],
    cumulative: bool,
    rows: int,
    recorder: Recorder,
) -> xr.DataArray:
    """Metric of every patched run, ``(prompt, site, layer, position)``: the stage ``patched``."""
    upto = {layer: [b for b in layers if b <= layer] if cumulative else [layer] for layer in layers}

    def groups(part: slice) -> list[list[Variant]]:
        # a pass starts where its first patch is, so blocks do not share one
        together = [layers] if cumulative else [[layer] for layer in layers[part]]
        return [
            [tuple(Swap(site, b, (at,)) for b in upto[layer]) for layer in some for at in where]
            for site in sites
            for some in together
        ]

    return patched_metrics(
        base,
        interchange,
        {"site": np.array(sites, dtype=object), "layer": list(layers), "position": list(where)},
        ("layer", len(layers) if cumulative else LAYERS_PER_BATCH),
        groups,
        rows=(rows, len(where)),
        recorder=recorder,
        stage="patched",
    )
