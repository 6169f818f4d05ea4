"""The models that ship inside the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

EMBEDDED = {
    "tiny-refuser": "an 8-layer Llama trained to refuse in two stages; one direction mediates it",
    "planted-gate": "a Llama whose refusal circuit is set by hand: ground truth for attribution",
}
"""Name to one-line summary."""

ON_SERVERS = {name: f"refusal-nn/{name}" for name in EMBEDDED}
"""Embedded name to the hub repository that an NDIF server knows it by."""


def embedded_path(name: str) -> Path | None:
    """The folder of an embedded model, or None if no model of that name ships."""
    if name not in EMBEDDED:
        return None
    return Path(str(files("refusal_nn.models").joinpath("organisms", name)))
