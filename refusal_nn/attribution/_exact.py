"""Exact attribution: every edge or node patched, and the metric measured.

Rows of a pass are (writer, pair). The two unpatched runs stay where they were made; a patched pass
begins at the block of its reader, with the blocks before it skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts._contrast import SIDES
from refusal_nn.contrasts._measured import measured, metrics_of
from refusal_nn.interventions import Edit
from refusal_nn.models._blocks import block_places
from refusal_nn.models._graph import LOGITS, EdgeGraph
from refusal_nn.runs._batches import batches_of, grid_of
from refusal_nn.shipped.edge_patches import patched_readings, patched_writes
from refusal_nn.tracing import Answers, Capture, Handle, Passes, Start, Work

if TYPE_CHECKING:
    from refusal_nn.contrasts import Contrast
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

WRITERS_A_PASS = 8
"""Writers that share a pass of default size; the rest of its rows are pairs."""


@dataclass(frozen=True)
class _Patch:
    """Passes that set one site to what a run made of each of the writers ``src``, in order."""

    site: str
    layer: int
    src: tuple[int, ...]
    made: str
    at: int | None = None
    of: str = "clean"
    dst: int | None = None
    heads: tuple[int, ...] | None = None


def exact_scores(
    contrast: Contrast, template: xr.Dataset, level: str, *, rows: int, recorder: Recorder
) -> xr.Dataset:
    """Scores of every edge or node from one patched pass each.

    A batch is some pairs and, of edges, one block's readers.

    Parameters
    ----------
    contrast : Contrast
    template : xarray.Dataset
        ``edge_score`` or ``node_score`` over its dims.
    level : {"edge", "node"}
    rows : int
        Rows a pass.
    recorder : Recorder

    Returns
    -------
    xarray.Dataset
        The template, filled.
    """
    graph = EdgeGraph.of(contrast.model.arch)
    batches = batches_of(len(contrast), max(1, rows // WRITERS_A_PASS), "prompt")
    if level == "edge":
        batches = grid_of(batches, batches_of(len(graph.dst), graph.readers_per_layer, "dst"))

    def batch(i: int, work: Work) -> Collect:
        region = batches[i]
        pairs, readers = region["prompt"], region.get("dst", slice(0, 0))
        if level == "edge":
            patches = [*_edge_patches(contrast, graph, readers.start)]
        else:
            patches = [*_node_patches(contrast, graph)]
        asked = _Asked(work, contrast, pairs, rows)
        if patches:
            asked.unpatched(graph, readers.start if level == "edge" else None, level)
        passes = [(patch, [*asked.patched(patch)]) for patch in patches]

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(region).copy(deep=True)
            scores = part[f"{level}_score"].values
            # the readers behind what the metric reads change nothing
            scores[...] = 0.0
            if level == "edge":
                scores[:, ~graph.mask[:, readers]] = np.nan
            for patch, handles in passes:
                found = metrics_of(answers, handles)
                clean = answers[asked.clean]["metric"].numpy()
                column = () if patch.dst is None else (patch.dst - readers.start,)
                scores[:, list(patch.src), *column] = (found.reshape(-1, len(clean)) - clean).T
            return part

        return collect

    return recorder.stage(f"{level}_scores", template, batches, Passes(contrast.model, batch))


class _Asked:
    """The passes of some pairs: two unpatched ones, then patched ones that refer to them."""

    corrupted: Handle
    clean: Handle

    def __init__(self, work: Work, contrast: Contrast, pairs: slice, rows: int) -> None:
        self.work, self.contrast, self.rows = work, contrast, rows
        self.batches = {side: contrast.batch(side, pairs) for side in SIDES}

    def unpatched(self, graph: EdgeGraph, first: int | None, level: str) -> None:
        """Corrupted run, then clean run with what later passes need of both.

        Parameters
        ----------
        graph : EdgeGraph
        first : int or None
            First of the readers that are patched.
        level : {"edge", "node"}
        """
        model, metric = self.contrast.model, self.contrast.metric
        after, extra = patched_readings.__name__, dict[str, Any]()
        if first is None:
            after, captures = patched_writes.__name__, [Capture("attn_out", "attn_out")]
            extra = {"keep": ["attn_out"]}
        elif graph.dst[first] == LOGITS:
            layers = metric.reads_after(model)
            captures = [Capture("final", "resid_post", layers - 1)]
            extra = {"layer": None, "layers": layers, "keep": ["final"]}
        else:
            layer = first // graph.readers_per_layer
            captures = [] if graph.parallel else [Capture("resid_mid", "resid_mid", layer)]
            extra = {"layer": layer, "layers": layer, "keep": ["q", "k", "v", "mlp_in"]}
        readout = metric.readout(model, keep=True)
        writers = [
            Capture("input", "resid_pre", 0, keep=True),
            Capture("z", "z", keep=True),
            Capture("mlp", "mlp_out", keep=True),
        ]
        self.corrupted = self.work.forward(self.batches["corrupted"], [*writers, readout])
        args = {
            "places": block_places(model),
            "parallel": graph.parallel,
            "mask": self.batches["clean"].mask,
            "metric": metric.plain(),
            **{name: self.corrupted.held(name) for name in ("input", "z", "mlp")},
            **extra,
        }
        stream = Capture("resid_pre", "resid_pre", keep=True)
        self.clean = self.work.forward(
            self.batches["clean"], [*writers, stream, readout, *captures], after=(after, args)
        )

    def patched(self, patch: _Patch) -> Iterator[Handle]:
        """The passes of one patch, in order of writers."""
        batch, clean = self.batches["clean"], self.clean
        n = len(batch.lengths)
        size = max(1, self.rows // n)
        source = clean if patch.of == "clean" else self.corrupted
        for first in range(0, len(patch.src), size):
            writers = range(first, min(first + size, len(patch.src)))
            value = source.held(
                patch.made, layer=patch.at, rows=[w * n + k for w in writers for k in range(n)]
            )
            every = list(range(n)) * len(writers)
            yield measured(
                self.work,
                self.contrast.metric,
                batch.repeat(len(writers)),
                [Edit(patch.layer, patch.site, "set", {"value": value}, heads=patch.heads)],
                clean=clean,
                start=Start(patch.layer, clean.held("resid_pre", layer=patch.layer, rows=every)),
            )


def _edge_patches(contrast: Contrast, graph: EdgeGraph, first: int) -> Iterator[_Patch]:
    """The patches of one block's readers, or of the final one; none behind what the metric reads."""
    arch = contrast.model.arch
    ends = contrast.metric.reads_after(contrast.model)
    if graph.dst[first] == LOGITS:
        seen = tuple(range(1 + ends * graph.writers_per_layer))
        yield _Patch("resid_post", ends - 1, seen, "final", dst=first)
        return
    layer = first // graph.readers_per_layer
    if layer >= ends:
        return
    column = first
    for site, heads in (("q", arch.n_heads), ("k", arch.n_kv_heads), ("v", arch.n_kv_heads)):
        for head in range(heads):
            seen = tuple(range(int(graph.prefix[column])))
            yield _Patch(site, layer, seen, site, head, dst=column, heads=(head,))
            column += 1
    seen = tuple(range(int(graph.prefix[column])))
    yield _Patch("mlp_in", layer, seen, "mlp_in", dst=column)


def _node_patches(contrast: Contrast, graph: EdgeGraph) -> Iterator[_Patch]:
    yield _Patch("resid_pre", 0, (0,), "input", of="corrupted")
    for layer in range(contrast.metric.reads_after(contrast.model)):
        at = 1 + layer * graph.writers_per_layer
        heads = tuple(range(at, at + graph.n_heads))
        yield _Patch("attn_out", layer, heads, "attn_out", layer)
        yield _Patch("mlp_out", layer, (at + graph.n_heads,), "mlp", layer, of="corrupted")
