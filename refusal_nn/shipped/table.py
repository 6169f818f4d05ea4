"""Shipped functions that a plan calls by name."""

from __future__ import annotations

from typing import Any

from refusal_nn.shipped.circuits import (
    circuit_sources,
    read_heads,
    read_stream,
    record_residual,
    record_writer,
)
from refusal_nn.shipped.edge_patches import patched_readings, patched_writes
from refusal_nn.shipped.edges import edge_scores, node_scores
from refusal_nn.shipped.heads import direct_heads
from refusal_nn.shipped.metrics import metric_after
from refusal_nn.shipped.reductions import residual_error
from refusal_nn.shipped.steps import vector_gradient, vector_step

AFTER: dict[str, Any] = {
    "circuit_sources": circuit_sources,
    "direct_heads": direct_heads,
    "edge_scores": edge_scores,
    "metric": metric_after,
    "node_scores": node_scores,
    "patched_readings": patched_readings,
    "patched_writes": patched_writes,
    "residual_error": residual_error,
    "vector_gradient": vector_gradient,
    "vector_step": vector_step,
}
"""What may follow a pass: name to a function of (model, captures, args) giving results."""

WITHIN: dict[str, Any] = {
    "read_heads": read_heads,
    "read_stream": read_stream,
    "record_residual": record_residual,
    "record_writer": record_writer,
}
"""Operations that need the model or other tensors of the same pass: name to a function of (value,
args, state), where ``state["model"]`` is the model."""
