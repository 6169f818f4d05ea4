"""Exact attribution: every edge or node patched, and the metric measured.

Rows of a pass are (writer, pair). The two unpatched runs stay where they were made; a patched pass
begins at the block of its reader, with the blocks before it skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.interventions import Edit
from refusal_nn.models._blocks import block_places
from refusal_nn.models._graph import LOGITS, EdgeGraph
from refusal_nn.runs._batches import batches_of
from refusal_nn.shipped.edge_patches import patched_readings, patched_writes
from refusal_nn.tracing import (
    Batch,
    Capture,
    ListedPasses,
    Ref,
    Request,
    Results,
    Start,
    forward_request,
    pad,
)

if TYPE_CHECKING:
    from refusal_nn.contrasts._align import AlignedPairs
    from refusal_nn.contrasts._metric import Metric
    from refusal_nn.models import Model
    from refusal_nn.store import Recorder

WRITERS_A_PASS = 8
"""Writers that share a pass of default size; the rest of its rows are pairs."""


@dataclass(frozen=True)
class _Patch:
    """ListedPasses that set one site: ``rows`` of the held value, for writers ``src`` in order."""

    site: str
    layer: int
    value: Ref
    src: tuple[int, ...]
    dst: int | None
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Job:
    """What every pass of one analysis shares."""

    model: Model
    aligned: AlignedPairs
    metric: Metric
    rows: int

    @property
    def graph(self) -> EdgeGraph:
        return EdgeGraph.of(self.model.arch)

    @property
    def pairs_a_pass(self) -> int:
        return max(1, self.rows // WRITERS_A_PASS)

    def unpatched(self, pairs: slice, after: str, extra: dict[str, Any]) -> list[Request]:
        """Corrupted run, then clean run with what later passes need of both."""
        model, metric = self.model, self.metric
        clean = pad(self.aligned.clean_rows[pairs], model.pad_token)
        corrupted = pad(self.aligned.corrupted_rows[pairs], model.pad_token)
        writers = [
            Capture("input", "resid_pre", 0, keep=True),
            Capture("z", "z", keep=True),
            Capture("mlp", "mlp_out", keep=True),
        ]
        captures = [*writers, Capture("resid_pre", "resid_pre", keep=True)]
        captures += [metric.readout(model, keep=True), *extra.pop("captures")]
        args = {
            "places": block_places(model),
            "parallel": self.graph.parallel,
            "mask": clean.mask,
            "metric": metric.plain(),
            "input": Ref(0, "input"),
            "z": Ref(0, "z"),
            "mlp": Ref(0, "mlp"),
            **extra,
        }
        return [
            forward_request(model, corrupted, [*writers, metric.readout(model, keep=True)]),
            forward_request(model, clean, captures, after=(after, args)),
        ]

    def measure(self) -> tuple[str, dict[str, Any]]:
        """What follows a patched pass."""
        return "metric", {"metric": self.metric.plain(), "clean": Ref(1, "readout")}

    def passes(self, pairs: slice, patch: _Patch) -> Iterator[Request]:
        """The passes of one patch, in order of writers."""
        clean = pad(self.aligned.clean_rows[pairs], self.model.pad_token)
        n = len(clean.lengths)
        for chunk in self.chunks(patch, n):
            yield self.patched(clean, patch, chunk)

    def chunks(self, patch: _Patch, n: int) -> list[range]:
        """Which of the patch's writers share a pass of ``n`` pairs."""
        size = max(1, self.rows // n)
        return [range(a, min(a + size, len(patch.src))) for a in range(0, len(patch.src), size)]

    def patched(self, clean: Batch, patch: _Patch, chunk: range) -> Request:
        """One pass: the clean run with one site set, row by row."""
        n = len(clean.lengths)
        rows = [w * n + k for w in chunk for k in range(n)]
        value = Ref(patch.value.request, patch.value.name, layer=patch.value.layer, rows=rows)
        every = list(range(n)) * len(chunk)
        return forward_request(
            self.model,
            clean.repeat(len(chunk)),
            [self.metric.readout(self.model)],
            [Edit(patch.layer, patch.site, "set", {"value": value}, heads=patch.heads)],
            start=Start(patch.layer, Ref(1, "resid_pre", layer=patch.layer, rows=every)),
            after=self.measure(),
        )


def exact_edges(
    model: Model,
    aligned: AlignedPairs,
    metric: Metric,
    template: xr.Dataset,
    *,
    rows: int,
    recorder: Recorder,
    check: Callable[[xr.Dataset], None],
) -> xr.Dataset:
    """Scores of every edge from one patched pass each; a batch is some pairs and one block's readers.

    Parameters
    ----------
    model : Model
    aligned : AlignedPairs
    metric : Metric
    template : xarray.Dataset
        ``edge_score`` over (prompt, src, dst) and the metrics of both runs.
    rows : int
        Rows a pass.
    recorder : Recorder
    check : callable
        Given the metrics of both runs, before anything is patched; raises where they will not do.

    Returns
    -------
    xarray.Dataset
        The template, filled.
    """
    job = _Job(model, aligned, metric, rows)
    graph = job.graph
    metrics = _metrics_of_both(job, template, recorder)
    check(metrics)
    edges = template[["edge_score"]]
    width = graph.readers_per_layer
    batches = [
        {**region, "dst": slice(first, min(first + width, len(graph.dst)))}
        for region in batches_of(len(aligned), job.pairs_a_pass, "prompt")
        for first in range(0, len(graph.dst), width)
    ]

    def patches(i: int) -> list[_Patch]:
        return list(_edge_patches(job, batches[i]["dst"].start))

    def requests(i: int) -> list[Request]:
        first, pairs = batches[i]["dst"].start, batches[i]["prompt"]
        chosen = patches(i)
        if not chosen:
            return []
        if graph.dst[first] == LOGITS:
            layer, layers = None, metric.reads_after(model)
            keep, captures = ["final"], [Capture("final", "resid_post", layers - 1)]
        else:
            layer = layers = first // width
            keep, captures = ["q", "k", "v", "mlp_in"], []
            if not graph.parallel:
                captures = [Capture("resid_mid", "resid_mid", layer)]
        extra = {"captures": captures, "layer": layer, "layers": layers, "keep": keep}
        out = job.unpatched(pairs, patched_readings.__name__, extra)
        for patch in chosen:
            out += job.passes(pairs, patch)
        return out

    def collect(i: int, results: Results) -> xr.Dataset:
        region = batches[i]
        part = edges.isel(region).copy(deep=True)
        scores = part["edge_score"].values
        # the readers behind what the metric reads change nothing
        scores[...] = np.where(graph.mask[:, region["dst"]], 0.0, np.nan)
        first = region["dst"].start
        for patch, change in _changes(job, patches(i), results, scores.shape[0]):
            scores[:, list(patch.src), patch.dst - first] = change
        return part

    found = recorder.stage("edge_scores", edges, batches, ListedPasses(model, requests, collect))
    return xr.merge([found, metrics], compat="equals", join="exact")


def exact_nodes(
    model: Model,
    aligned: AlignedPairs,
    metric: Metric,
    template: xr.Dataset,
    *,
    rows: int,
    recorder: Recorder,
    check: Callable[[xr.Dataset], None],
) -> xr.Dataset:
    """Scores of every node from one patched pass each; parameters as for :func:`exact_edges`."""
    job = _Job(model, aligned, metric, rows)
    metrics = _metrics_of_both(job, template, recorder)
    check(metrics)
    nodes = template[["node_score"]]
    batches = batches_of(len(aligned), job.pairs_a_pass, "prompt")
    patches = list(_node_patches(job))

    def requests(i: int) -> list[Request]:
        pairs = batches[i]["prompt"]
        extra = {"captures": [Capture("attn_out", "attn_out")], "keep": ["attn_out"]}
        out = job.unpatched(pairs, patched_writes.__name__, extra)
        for patch in patches:
            out += job.passes(pairs, patch)
        return out

    def collect(i: int, results: Results) -> xr.Dataset:
        part = nodes.isel(batches[i]).copy(deep=True)
        scores = part["node_score"].values
        scores[...] = 0.0
        for patch, change in _changes(job, patches, results, scores.shape[0]):
            scores[:, list(patch.src)] = change
        return part

    found = recorder.stage("node_scores", nodes, batches, ListedPasses(model, requests, collect))
    return xr.merge([found, metrics], compat="equals", join="exact")


def _edge_patches(job: _Job, first: int) -> Iterator[_Patch]:
    """The patches of one block's readers, or of the final one; none behind what the metric reads."""
    graph, arch = job.graph, job.model.arch
    ends = job.metric.reads_after(job.model)
    if graph.dst[first] == LOGITS:
        seen = tuple(range(1 + ends * graph.writers_per_layer))
        yield _Patch("resid_post", ends - 1, Ref(1, "final"), seen, first)
        return
    layer = first // graph.readers_per_layer
    if layer >= ends:
        return
    column = first
    for site, heads in (("q", arch.n_heads), ("k", arch.n_kv_heads), ("v", arch.n_kv_heads)):
        for head in range(heads):
            seen = tuple(range(int(graph.prefix[column])))
            yield _Patch(site, layer, Ref(1, site, layer=head), seen, column, (head,))
            column += 1
    seen = tuple(range(int(graph.prefix[column])))
    yield _Patch("mlp_in", layer, Ref(1, "mlp_in"), seen, column)


def _node_patches(job: _Job) -> Iterator[_Patch]:
    graph = job.graph
    yield _Patch("resid_pre", 0, Ref(0, "input"), (0,), None)
    for layer in range(job.metric.reads_after(job.model)):
        at = 1 + layer * graph.writers_per_layer
        heads = tuple(range(at, at + graph.n_heads))
        yield _Patch("attn_out", layer, Ref(1, "attn_out", layer=layer), heads, None)
        mlp = (at + graph.n_heads,)
        yield _Patch("mlp_out", layer, Ref(0, "mlp", layer=layer), mlp, None)


def _changes(
    job: _Job, patches: list[_Patch], results: Results, n: int
) -> Iterator[tuple[_Patch, np.ndarray]]:
    """Patched minus clean metric of each patch, ``[prompt, writer]``."""
    at = 2
    for patch in patches:
        count = len(job.chunks(patch, n))
        found = np.concatenate([r["metric"].numpy() for r in results[at : at + count]])
        at += count
        yield patch, (found.reshape(-1, n) - results[1]["metric"].numpy()).T


def _metrics_of_both(job: _Job, template: xr.Dataset, recorder: Recorder) -> xr.Dataset:
    """``clean_metric`` and ``corrupted_metric`` of every pair."""
    both = template[["clean_metric", "corrupted_metric"]]
    batches = batches_of(len(job.aligned), max(1, job.rows // 2), "prompt")

    def requests(i: int) -> list[Request]:
        pairs = batches[i]["prompt"]
        rows = [*job.aligned.clean_rows[pairs], *job.aligned.corrupted_rows[pairs]]
        after = {"metric": job.metric.plain(), "clean_rows": len(rows) // 2}
        batch, readout = pad(rows, job.model.pad_token), job.metric.readout(job.model)
        return [forward_request(job.model, batch, [readout], after=("metric", after))]

    def collect(i: int, results: Results) -> xr.Dataset:
        clean, corrupted = results[0]["metric"].numpy().reshape(2, -1)
        values = {"clean_metric": ("prompt", clean), "corrupted_metric": ("prompt", corrupted)}
        return both.isel(batches[i]).assign(values)

    return recorder.stage("metrics", both, batches, ListedPasses(job.model, requests, collect))
