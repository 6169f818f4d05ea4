"""Exact attribution: every edge or node patched, and the metric measured.

Rows of a pass are (writer, pair). The two unpatched runs stay where they were made; a patched pass
begins at the block of its reader, with the blocks before it skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from refusal_nn.tracing import Answers, Batch, Capture, Handle, Passes, Start, Work

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


_Needs = tuple[list[_Patch], list[Capture], dict[str, Any]]
"""Patches, and what the clean run captures for them and is told besides."""

_AFTER = {"edge": patched_readings.__name__, "node": patched_writes.__name__}


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
        readers = region.get("dst", slice(0, 0))
        if level == "edge":
            patches, captures, extra = _edge_patches(contrast, graph, readers.start)
        else:
            patches, captures, extra = _node_patches(contrast, graph)
        sides = {side: contrast.batch(side, region["prompt"]) for side in SIDES}
        runs: dict[str, Handle] = {}
        if patches:
            runs = _unpatched(work, contrast, sides, captures, (_AFTER[level], extra))
        passes = [(p, [*_patched(work, contrast, sides["clean"], runs, p, rows)]) for p in patches]

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(region).copy(deep=True)
            scores = part[f"{level}_score"].values
            # the readers behind what the metric reads change nothing
            scores[...] = 0.0
            if level == "edge":
                scores[:, ~graph.mask[:, readers]] = np.nan
            for patch, handles in passes:
                found = metrics_of(answers, handles)
                clean = answers[runs["clean"]]["metric"].numpy()
                column = () if patch.dst is None else (patch.dst - readers.start,)
                scores[:, list(patch.src), *column] = (found.reshape(-1, len(clean)) - clean).T
            return part

        return collect

    return recorder.stage(f"{level}_scores", template, batches, Passes(contrast.model, batch))


def _unpatched(
    work: Work,
    contrast: Contrast,
    sides: Mapping[str, Batch],
    captures: Sequence[Capture],
    after: tuple[str, dict[str, Any]],
) -> dict[str, Handle]:
    """Corrupted run, then clean run with what later passes need of both."""
    model, metric = contrast.model, contrast.metric
    writers = {"input": ("resid_pre", 0), "z": ("z", None), "mlp": ("mlp_out", None)}
    held = [Capture(name, site, layer, keep=True) for name, (site, layer) in writers.items()]
    held.append(metric.readout(model, keep=True))
    corrupted = work.forward(sides["corrupted"], held)
    make, extra = after
    args = {
        "places": block_places(model),
        "parallel": EdgeGraph.of(model.arch).parallel,
        "mask": sides["clean"].mask,
        "metric": metric.plain(),
        **{name: corrupted.held(name) for name in writers},
        **extra,
    }
    stream = Capture("resid_pre", "resid_pre", keep=True)
    clean = work.forward(sides["clean"], [*held, stream, *captures], after=(make, args))
    return {"clean": clean, "corrupted": corrupted}


def _patched(
    work: Work,
    contrast: Contrast,
    batch: Batch,
    runs: Mapping[str, Handle],
    patch: _Patch,
    rows: int,
) -> Iterator[Handle]:
    """The passes of one patch, in order of writers."""
    n, clean = len(batch.lengths), runs["clean"]
    size = max(1, rows // n)
    for first in range(0, len(patch.src), size):
        writers = range(first, min(first + size, len(patch.src)))
        value = runs[patch.of].held(
            patch.made, layer=patch.at, rows=[w * n + k for w in writers for k in range(n)]
        )
        every = list(range(n)) * len(writers)
        yield measured(
            work,
            contrast.metric,
            batch.repeat(len(writers)),
            [Edit(patch.layer, patch.site, "set", {"value": value}, heads=patch.heads)],
            clean=clean,
            start=Start(patch.layer, clean.held("resid_pre", layer=patch.layer, rows=every)),
        )


def _edge_patches(contrast: Contrast, graph: EdgeGraph, first: int) -> _Needs:
    """For one block's readers, or the final one; no patches behind what the metric reads."""
    arch, ends = contrast.model.arch, contrast.metric.reads_after(contrast.model)
    if graph.dst[first] == LOGITS:
        seen = tuple(range(1 + ends * graph.writers_per_layer))
        patch = _Patch("resid_post", ends - 1, seen, "final", dst=first)
        final = Capture("final", "resid_post", ends - 1)
        return [patch], [final], {"layer": None, "layers": ends, "keep": ["final"]}
    layer = first // graph.readers_per_layer
    heads = {"q": arch.n_heads, "k": arch.n_kv_heads, "v": arch.n_kv_heads}
    readers = [(site, head, (head,)) for site, n in heads.items() for head in range(n)]
    patches = [
        _Patch(site, layer, tuple(range(graph.prefix[dst])), site, head, dst=dst, heads=own)
        for dst, (site, head, own) in enumerate([*readers, ("mlp_in", None, None)], first)
    ]
    captures = [] if graph.parallel else [Capture("resid_mid", "resid_mid", layer)]
    extra = {"layer": layer, "layers": layer, "keep": ["q", "k", "v", "mlp_in"]}
    return patches if layer < ends else [], captures, extra


def _node_patches(contrast: Contrast, graph: EdgeGraph) -> _Needs:
    patches = [_Patch("resid_pre", 0, (0,), "input", of="corrupted")]
    for layer in range(contrast.metric.reads_after(contrast.model)):
        mlp = (layer + 1) * graph.writers_per_layer
        heads = tuple(range(mlp - graph.n_heads, mlp))
        patches.append(_Patch("attn_out", layer, heads, "attn_out", layer))
        patches.append(_Patch("mlp_out", layer, (mlp,), "mlp", layer, of="corrupted"))
    return patches, [Capture("attn_out", "attn_out")], {"keep": ["attn_out"]}
