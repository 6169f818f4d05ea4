"""Models: which one, where its parts are, how its chat template ends.

Nothing is imported until it is used, so that :mod:`refusal_nn.models.sites` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refusal_nn.backends.ndif._link import Limits, Link, compare_versions, deployed
    from refusal_nn.backends.ndif._service import Service
    from refusal_nn.models._architecture import Architecture, Place, build_architecture
    from refusal_nn.models._catalogue import EMBEDDED, embedded_path
    from refusal_nn.models._chat import Chat
    from refusal_nn.models._families import Family
    from refusal_nn.models._graph import EdgeGraph
    from refusal_nn.models._model import DTYPES, Model, load_model, quiet, wrap_model
    from refusal_nn.models.sites import BLOCK_SITES, HEAD_SITES, SITES

_WHERE = {
    "refusal_nn.backends.ndif._link": ("Limits", "Link", "compare_versions", "deployed"),
    "refusal_nn.backends.ndif._service": ("Service",),
    "refusal_nn.models._architecture": ("Architecture", "Place", "build_architecture"),
    "refusal_nn.models._catalogue": ("EMBEDDED", "embedded_path"),
    "refusal_nn.models._chat": ("Chat",),
    "refusal_nn.models._families": ("Family",),
    "refusal_nn.models._graph": ("EdgeGraph",),
    "refusal_nn.models._model": ("DTYPES", "Model", "load_model", "quiet", "wrap_model"),
    "refusal_nn.models.sites": ("BLOCK_SITES", "HEAD_SITES", "SITES"),
}

__all__ = [
    "BLOCK_SITES",
    "DTYPES",
    "EMBEDDED",
    "HEAD_SITES",
    "SITES",
    "Architecture",
    "Chat",
    "EdgeGraph",
    "Family",
    "Limits",
    "Link",
    "Model",
    "Place",
    "Service",
    "build_architecture",
    "compare_versions",
    "deployed",
    "embedded_path",
    "load_model",
    "quiet",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'refusal_nn.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
