"""ListedPasses in which the run of one prompt of a pair gets activations of the other's.

A batch is rows = (variant, pair): every variant says which activations are exchanged, and one pass
runs all of them from the block where the first exchange happens, on the residual stream that the
unpatched run has there. Activations of the other run stay on the machine that computed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refusal_nn.errors import RequestError
from refusal_nn.interventions import Edit
from refusal_nn.patching._measured import measured, needs_clean_run
from refusal_nn.tracing import (
    Batch,
    Capture,
    Ref,
    Request,
    Start,
    forward_request,
    generate_request,
    pad,
)

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.contrasts._align import AlignedPairs
    from refusal_nn.models import Model

INTERCHANGES = ("sufficiency", "necessity")
"""``sufficiency``: the harmless prompt runs with activations of the harmful one; ``necessity``: the
harmful prompt runs with activations of the harmless one."""

_BASE, _DONOR = 0, 1


@dataclass(frozen=True)
class Swap:
    """Activations to exchange at one site of one block.

    Attributes
    ----------
    site : str
    layer : int
    positions : tuple of int, optional
        From the end of the prompt; every token when None.
    heads : tuple of int, optional
        At a site with heads; every head when None.
    """

    site: str
    layer: int
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None


Variant = tuple[Swap, ...]
"""What is exchanged in one row of a batch."""


def checked_interchange(interchange: str) -> str:
    """``interchange`` if it is a direction of patching, else an error."""
    if interchange not in INTERCHANGES:
        raise RequestError(
            f"direction {interchange!r} is not one of {', '.join(INTERCHANGES)} (into the harmless "
            "run, into the harmful run)."
        )
    return interchange


class Exchange:
    """The two runs of pairs, and passes of one with activations of the other.

    Parameters
    ----------
    model : Model
    aligned : AlignedPairs
    metric : Metric
        What a patched pass returns, one value a row.
    interchange : str
        One of :data:`INTERCHANGES`.
    """

    def __init__(
        self, model: Model, aligned: AlignedPairs, metric: Metric, interchange: str
    ) -> None:
        self.model = model
        self.metric = metric
        self.interchange = checked_interchange(interchange)
        runs = (aligned.corrupted_rows, aligned.clean_rows)
        self._base, self._donor = runs if interchange == "sufficiency" else runs[::-1]

    def runs(
        self, group: Sequence[int], sites: Sequence[str], layers: Sequence[int]
    ) -> list[Request]:
        """The first two requests of a batch: the unpatched run and the one to take from.

        Parameters
        ----------
        group : sequence of int
            Pairs.
        sites, layers
            Where activations are taken; blocks in ascending order.
        """
        residual = [Capture("residual", "resid_pre", list(layers), keep=True)]
        taken = [Capture(site, site, list(layers), keep=True) for site in sites]
        if needs_clean_run(self.metric):
            (residual, taken)[self._clean_run].append(self.metric.readout(self.model, keep=True))
        return [
            forward_request(self.model, self._batch(self._base, group), residual),
            forward_request(self.model, self._batch(self._donor, group), taken),
        ]

    def patched(
        self,
        group: Sequence[int],
        variants: Sequence[Variant],
        layers: Sequence[int],
        *,
        captures: Sequence[Capture] | None = None,
        base: int = _BASE,
        donor: int = _DONOR,
        taken: Sequence[int] | None = None,
        clean: int | None = None,
    ) -> Request:
        """A pass of every variant on every pair: rows are all pairs of the first variant, and so on.

        It follows :meth:`runs` of the same ``group`` and ``layers``, and returns ``metric``
        ``[row]``, or instead the captures given.

        Parameters
        ----------
        group : sequence of int
            Pairs.
        variants : sequence of Variant
        layers : sequence of int
            Blocks whose residual stream the unpatched run held, ascending.
        captures : sequence of Capture, optional
        base, donor, clean : int
            Requests of the batch that held the unpatched run, the one to take from, and the readout
            of the harmful prompts' unpatched run, where they are not those of :meth:`runs`.
        taken : sequence of int, optional
            Blocks whose activations the donor held; default ``layers``.
        """
        n = len(group)
        batch = self._batch(self._base, group)
        rows = list(range(n)) * len(variants)
        first = min(swap.layer for variant in variants for swap in variant)
        start = Start(first, Ref(base, "residual", layer=list(layers).index(first), rows=rows))
        edits = self._edits(batch, variants, layers if taken is None else taken, donor)
        batch = batch.repeat(len(variants))
        if captures is not None:
            return forward_request(self.model, batch, captures, edits, start=start)
        clean = self._clean_run if clean is None else clean
        return measured(self.model, self.metric, batch, edits, clean=clean, start=start)

    def generated(
        self,
        group: Sequence[int],
        variants: Sequence[Variant],
        layers: Sequence[int],
        *,
        max_new_tokens: int,
    ) -> Request:
        """Greedy completions under every variant.

        The exchange is made on the prompt; later tokens see it through the cache.
        """
        batch = self._batch(self._base, group)
        return generate_request(
            self.model,
            batch.repeat(len(variants)),
            self._edits(batch, variants, layers),
            max_new_tokens=max_new_tokens,
        )

    @property
    def _clean_run(self) -> int:
        return _DONOR if self.interchange == "sufficiency" else _BASE

    def _batch(self, rows: Sequence[Sequence[int]], group: Sequence[int]) -> Batch:
        return pad([rows[k] for k in group], self.model.pad_token)

    def _edits(
        self,
        batch: Batch,
        variants: Sequence[Variant],
        layers: Sequence[int],
        donor: int = _DONOR,
    ) -> list[Edit]:
        n, width = len(batch.lengths), batch.width
        rows = list(range(n)) * len(variants)
        edits = []
        for layer, site in sorted({(s.layer, s.site) for variant in variants for s in variant}):
            n_heads = self.model.arch.place(site).heads
            swaps = [(v, s) for v, variant in enumerate(variants) for s in variant]
            here = [(v, s) for v, s in swaps if (s.layer, s.site) == (layer, site)]
            # one flag a token, or one for all where all are meant; one a head besides
            tokens = 1 if all(s.positions is None for _, s in here) else width
            mask = np.zeros((len(variants), n, tokens, n_heads or 1), dtype=bool)
            for v, swap in here:
                self._mark(mask[v], swap, batch, n_heads)
            flags = mask.reshape(len(variants) * n, tokens, -1)
            value = Ref(donor, site, layer=list(layers).index(layer), rows=rows)
            args = {"value": value, "mask": flags[..., None] if n_heads else flags}
            edits.append(Edit(layer, site, "swap", args))
        return edits

    def _mark(self, mask: np.ndarray, swap: Swap, batch: Batch, n_heads: int) -> None:
        columns = list(range(mask.shape[1]))
        if swap.positions is not None:
            if min(swap.positions) < -min(batch.lengths) or max(swap.positions) >= 0:
                raise RequestError(
                    f"positions {list(swap.positions)} are not inside every pair: they count from "
                    f"the end of the prompt, and the shortest pair has {min(batch.lengths)} tokens."
                )
            columns = [batch.width + p for p in swap.positions]
        if swap.heads is None:
            mask[:, columns] = True
            return
        if not n_heads or max(swap.heads) >= n_heads or min(swap.heads) < 0:
            raise RequestError(
                f"heads {list(swap.heads)} are not heads of {swap.site!r}, which has {n_heads}."
            )
        mask[np.ix_(range(mask.shape[0]), columns, list(swap.heads))] = True


def chunks(variants: Sequence[Variant], n_pairs: int, rows: int) -> list[Sequence[Variant]]:
    """Variants in passes of at most ``rows`` rows, at least one variant each."""
    size = max(1, rows // n_pairs)
    return [variants[i : i + size] for i in range(0, len(variants), size)]
