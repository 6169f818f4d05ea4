"""The run of one prompt of a pair, with activations of the other's.

A batch is rows = (variant, pair): every variant says which activations are exchanged, and one pass
runs all of them from the block where the first exchange happens, on the residual stream that the
unpatched run has there. Activations of the other run stay on the machine that computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts._measured import measured, metrics_of
from refusal_nn.errors import RequestError
from refusal_nn.interventions import Edit
from refusal_nn.runs._batches import batches_of, grid_of
from refusal_nn.tracing import Answers, Batch, Capture, Handle, Passes, Start, Work

if TYPE_CHECKING:
    from refusal_nn.contrasts import Contrast, Measured, Metric
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

SIDES_OF = {"sufficiency": ("corrupted", "clean"), "necessity": ("clean", "corrupted")}
"""The side that runs, and the side that activations are taken from."""

INTERCHANGES = tuple(SIDES_OF)
"""``sufficiency``: the harmless prompt runs with activations of the harmful one; ``necessity``: the
harmful prompt runs with activations of the harmless one."""


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
            f"interchange {interchange!r} is not one of {', '.join(INTERCHANGES)} (into the harmless "
            "run, into the harmful run)."
        )
    return interchange


@dataclass(frozen=True)
class Exchange:
    """Passes of the run of one side of some pairs, with activations of another run.

    Attributes
    ----------
    work : Work
        Of the batch that the passes belong to.
    metric : Metric
        What a patched pass returns, one value a row.
    batch : Batch
        The prompts that run.
    base, donor : Handle
        Their unpatched run, which held ``residual`` at ``layers``, and the run to take from, which
        held its activations at ``taken``, by site.
    clean : Handle
        The harmful prompts' unpatched run, for a metric that compares with it.
    layers, taken : tuple of int
        Blocks, ascending.
    """

    work: Work
    metric: Metric
    batch: Batch
    base: Handle
    donor: Handle
    clean: Handle
    layers: tuple[int, ...]
    taken: tuple[int, ...]

    @classmethod
    def between(
        cls,
        work: Work,
        contrast: Contrast,
        interchange: str,
        some: slice,
        sites: Sequence[str],
        layers: Sequence[int],
    ) -> Exchange:
        """Ask for the unpatched runs of both prompts, and exchange between the two.

        Parameters
        ----------
        work : Work
        contrast : Contrast
        interchange : str
            One of :data:`INTERCHANGES`.
        some : slice
            Pairs.
        sites, layers
            Where activations are taken; blocks in ascending order.
        """
        base, donor = SIDES_OF[interchange]
        captures = {
            base: [Capture("residual", "resid_pre", list(layers), keep=True)],
            donor: [Capture(site, site, list(layers), keep=True) for site in sites],
        }
        captures["clean"] += contrast.held()
        batches = {side: contrast.batch(side, some) for side in captures}
        runs = {side: work.forward(batches[side], held) for side, held in captures.items()}
        at = tuple(layers)
        return cls(
            work, contrast.metric, batches[base], runs[base], runs[donor], runs["clean"], at, at
        )

    def patched(
        self, variants: Sequence[Variant], captures: Sequence[Capture] | None = None
    ) -> Handle:
        """A pass of every variant on every pair: rows are all pairs of the first variant, and so on.

        It returns ``metric`` ``[row]``, or instead the captures given.
        """
        first = min(swap.layer for variant in variants for swap in variant)
        rows = list(range(len(self.batch.lengths))) * len(variants)
        residual = self.base.held("residual", layer=self.layers.index(first), rows=rows)
        start, batch = Start(first, residual), self.batch.repeat(len(variants))
        edits = swap_edits(self.work, self.batch, self.donor, self.taken, variants)
        if captures is not None:
            return self.work.forward(batch, captures, edits, start=start)
        return measured(self.work, self.metric, batch, edits, clean=self.clean, start=start)

    def each(self, variants: Sequence[Variant], rows: int) -> list[Handle]:
        """Patched passes of at most ``rows`` rows, at least one variant each."""
        size = max(1, rows // len(self.batch.lengths))
        return [self.patched(variants[i : i + size]) for i in range(0, len(variants), size)]


def patched_metrics(
    base: Measured,
    interchange: str,
    labels: Mapping[str, Any],
    cut: tuple[str, int],
    groups_of: Callable[[slice], Sequence[Sequence[Variant]]],
    *,
    rows: tuple[int, int],
    recorder: Recorder,
    stage: str,
) -> xr.DataArray:
    """Metric of every pair with every variant, ``(prompt, ...)``.

    Parameters
    ----------
    base : Measured
    interchange : str
        One of :data:`INTERCHANGES`.
    labels : mapping
        Dims that the variants lie along, and their labels, the outermost first.
    cut : (str, int)
        Along which of these dims a batch covers how much.
    groups_of : callable
        From a part of that dim to its variants in the order of ``labels``, in groups that start at one
        block; no others share a pass.
    rows : (int, int)
        Rows (variant, pair) a pass, and how many variants usually share one.
    recorder : Recorder
    stage : str
        Its name there; variable ``patched_metric``.
    """
    # pairs of like length share a pass, so that little of it is padding
    by_length = np.argsort(base.aligned.lengths, kind="stable")
    contrast, n = base.take(by_length), len(base)
    shape = (n, *map(len, labels.values()))
    template = xr.Dataset(
        {"patched_metric": (("prompt", *labels), np.full(shape, np.nan))},
        {**contrast.labels(), **labels},
    )
    (dim, size), (most, shared) = cut, rows
    batches = grid_of(
        batches_of(n, max(1, most // shared), "prompt"), batches_of(len(labels[dim]), size, dim)
    )

    def batch(i: int, work: Work) -> Collect:
        groups = groups_of(batches[i][dim])
        swaps = {swap for group in groups for variant in group for swap in variant}
        sites, layers = sorted({s.site for s in swaps}), sorted({s.layer for s in swaps})
        some = batches[i]["prompt"]
        exchange = Exchange.between(work, contrast, interchange, some, sites, layers)
        asked = [handle for group in groups for handle in exchange.each(group, most)]

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(batches[i]).transpose(..., "prompt")
            values = metrics_of(answers, asked).reshape(part["patched_metric"].shape)
            return part.assign(patched_metric=((*labels, "prompt"), values))

        return collect

    found = recorder.stage(stage, template, batches, Passes(base.model, batch))
    return found["patched_metric"].isel(prompt=np.argsort(by_length))


def swap_edits(
    work: Work, batch: Batch, donor: Handle, layers: Sequence[int], variants: Sequence[Variant]
) -> list[Edit]:
    """The exchanges of a pass of every variant on every row of a batch, variant first.

    Parameters
    ----------
    work : Work
    batch : Batch
        The prompts that run, once.
    donor : Handle
        The run to take from, which held its activations at ``layers``, by site.
    layers : sequence of int
    variants : sequence of Variant
    """
    n, width = len(batch.lengths), batch.width
    rows = list(range(n)) * len(variants)
    edits = []
    for layer, site in sorted({(s.layer, s.site) for variant in variants for s in variant}):
        n_heads = work.model.arch.place(site).heads
        here = [
            (v, s)
            for v, variant in enumerate(variants)
            for s in variant
            if (s.layer, s.site) == (layer, site)
        ]
        # one flag a token, or one for all where all are meant; one a head besides
        tokens = 1 if all(s.positions is None for _, s in here) else width
        mask = np.zeros((len(variants), n, tokens, n_heads or 1), dtype=bool)
        for v, swap in here:
            _mark(mask[v], swap, batch, n_heads)
        flags = mask.reshape(len(variants) * n, tokens, -1)
        value = donor.held(site, layer=list(layers).index(layer), rows=rows)
        args = {"value": value, "mask": flags[..., None] if n_heads else flags}
        edits.append(Edit(layer, site, "swap", args))
    return edits


def _mark(mask: np.ndarray, swap: Swap, batch: Batch, n_heads: int) -> None:
    """Set what a swap exchanges in ``mask`` ``[pair, token, head]``."""
    tokens, heads = (np.ones(size, dtype=bool) for size in mask.shape[1:])
    if swap.positions is not None:
        if min(swap.positions) < -min(batch.lengths) or max(swap.positions) >= 0:
            raise RequestError(
                f"positions {list(swap.positions)} are not inside every pair: they count from "
                f"the end of the prompt, and the shortest pair has {min(batch.lengths)} tokens."
            )
        tokens = np.isin(np.arange(-batch.width, 0), swap.positions)
    if swap.heads is not None:
        if not n_heads or max(swap.heads) >= n_heads or min(swap.heads) < 0:
            raise RequestError(
                f"heads {list(swap.heads)} are not heads of {swap.site!r}, which has {n_heads}."
            )
        heads = np.isin(np.arange(n_heads), swap.heads)
    mask |= np.logical_and.outer(tokens, heads)
