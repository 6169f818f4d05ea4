"""Circuits as requests: which reader is overwritten where, for a batch of (circuit, pair) rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from refusal_nn.interventions import Edit
from refusal_nn.models._blocks import block_places
from refusal_nn.tracing import Batch, Capture, Handle, Ref, Work

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.models._graph import EdgeGraph

_CACHE_BYTES = 1 << 29
Means = dict[str, list[torch.Tensor]]
"""Ablated values by name, a tensor a layer: ``[1, token, ...]``."""


def ask_sources(work: Work, batch: Batch, *, total: bool = False) -> Handle:
    """A plain run of prompts that holds what every writer contributes.

    Parameters
    ----------
    work : Work
    batch : Batch
    total : bool
        Add up the rows and return the sums instead of holding them; for rows of equal length.
    """
    keep = not total
    captures = [
        Capture("input", "resid_pre", 0, keep=keep),
        Capture("z", "z", keep=keep),
        Capture("mlp", "mlp_out", keep=keep),
    ]
    writers = [places["writer"] for places in block_places(work.model)]
    after = ("circuit_sources", {"places": writers, "sum": total})
    return work.forward(batch, captures, after=after)


def bytes_per_row(model: Model, graph: EdgeGraph, width: int) -> int:
    """What one (circuit, pair) row needs beside the model's own activations, at its peak."""
    heads = graph.readers_per_layer + graph.n_heads
    vectors = 2 * heads + 2 * graph.n_layers + 2
    return int(vectors * width * model.d_model * (8 if model.dtype == torch.float64 else 4))


def circuit_edits(
    model: Model,
    graph: EdgeGraph,
    batch: Batch,
    kept: np.ndarray,
    depth: int,
    *,
    ablated: Handle | Means | None,
) -> list[Edit]:
    """What makes one pass that of several circuits on the same pairs.

    Parameters
    ----------
    model : Model
    graph : EdgeGraph
    batch : Batch
        The clean prompts, once; the pass has ``len(kept)`` times its rows, circuit first.
    kept : array, ``[circuit, src, dst]`` bool
    depth : int
        Blocks before what the metric reads, and so where the reader ``logits`` is.
    ablated : Handle, dict or None
        What excluded edges carry: the writers that a run of the same pairs holds
        (:func:`ask_sources`), given tensors aligned at the last token, or zero.
    """
    excluded = ~np.asarray(kept, dtype=bool)
    size = 8 if model.dtype == torch.float64 else 4
    every = len(graph.src) * len(excluded) * batch.ids.numel() * model.d_model * size
    common = {"circuits": len(excluded), "cache": every <= _CACHE_BYTES}
    edits: list[Edit] = []

    def add(layer: int, site: str, operation: str, plain: dict[str, Any]) -> None:
        edits.append(Edit(layer, site, operation, {}, plain=plain))

    def record(layer: int, site: str, name: str, place: dict[str, Any] | None) -> None:
        value: Ref | torch.Tensor | None = None
        if isinstance(ablated, Handle):
            value = ablated.held(name, layer=None if name == "input" else layer)
        elif ablated is not None:
            value = ablated[name][layer]
        number = {"input": 0, "z": 1, "mlp": 1 + graph.n_heads}[name]
        writers = [number + layer * graph.writers_per_layer, len(graph.src)]
        plain = {**common, "value": value, "place": place, "writers": writers}
        add(layer, site, "record_writer", plain)

    for layer, places in enumerate(block_places(model)[:depth]):
        first = layer * graph.readers_per_layer
        mlp = first + graph.readers_per_layer - 1
        add(layer, "resid_pre", "record_residual", {"add": False})
        if layer == 0:
            record(layer, "resid_pre", "input", None)
        start = 0
        parts = [part for module in places["projections"] for part in module["parts"]]
        for site, part in zip(("q", "k", "v"), parts, strict=True):
            plain = {
                "excluded": None if start else _excluded(graph, excluded, first, mlp),
                "norm": places["attn_norm"],
                "projection": part,
                "readers": [start, start + part["heads"]],
            }
            add(layer, site, "read_heads", plain)
            start += part["heads"]
        record(layer, "z", "z", places["writer"])
        if not graph.parallel:
            add(layer, "attn_out", "record_residual", {"add": True})
        norm = places["mlp_norm"] and str(places["mlp_norm"]["path"])
        seen = _excluded(graph, excluded, mlp, mlp + 1)
        add(layer, "mlp_in", "read_stream", {"excluded": seen, "norm": norm})
        record(layer, "mlp_out", "mlp", None)
    add(depth - 1, "resid_post", "record_residual", {"add": False})
    seen = _excluded(graph, excluded, len(graph.dst) - 1, len(graph.dst))
    seen = seen[:, :, : 1 + depth * graph.writers_per_layer]
    add(depth - 1, "resid_post", "read_stream", {"excluded": seen, "norm": None})
    return edits


def _excluded(graph: EdgeGraph, excluded: np.ndarray, start: int, stop: int) -> torch.Tensor:
    """``[circuit, reader, writer]`` of neighbouring readers, which see the same writers."""
    seen = int(graph.prefix[start])
    return torch.from_numpy(excluded[:, :seen, start:stop].transpose(0, 2, 1).copy())
