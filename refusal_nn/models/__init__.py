"""Models: which one, where its parts are, how its chat template ends.

Of ours nothing is imported until it is used, so that :mod:`refusal_nn.models.sites` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusal_nn._lazy import lazy
from refusal_nn._renamed import renamed
from refusal_nn.models import _anyio  # noqa: F401 - before a script that imports us imports nnsight

if TYPE_CHECKING:
    from refusal_nn.models._architecture import Architecture, Place, build_architecture
    from refusal_nn.models._backend import BACKENDS, Backend, Loading, Reading
    from refusal_nn.models._catalogue import EMBEDDED, embedded_path
    from refusal_nn.models._chat import Chat
    from refusal_nn.models._families import Family
    from refusal_nn.models._load import DTYPES, Options, load_model, quiet, wrap_model
    from refusal_nn.models._model import Model
    from refusal_nn.models.sites import BLOCK_SITES, HEAD_SITES, SITES

_WHERE = {
    "_architecture": ("Architecture", "Place", "build_architecture"),
    "_backend": ("BACKENDS", "Backend", "Loading", "Reading"),
    "_catalogue": ("EMBEDDED", "embedded_path"),
    "_chat": ("Chat",),
    "_families": ("Family",),
    "_load": ("DTYPES", "Options", "load_model", "quiet", "wrap_model"),
    "_model": ("Model",),
    "sites": ("BLOCK_SITES", "HEAD_SITES", "SITES"),
}
_old = renamed(
    __name__,
    {
        "Limits": "refusal_nn.backends:Limits",
        "Link": "refusal_nn.backends:Ndif",
        "Service": "refusal_nn.backends:Service",
        "compare_versions": "refusal_nn.backends:compare_versions",
        "deployed": "refusal_nn.backends:deployed",
    },
    stacklevel=3,
)

__all__ = [
    "BACKENDS",
    "BLOCK_SITES",
    "DTYPES",
    "EMBEDDED",
    "HEAD_SITES",
    "SITES",
    "Architecture",
    "Backend",
    "Chat",
    "Family",
    "Loading",
    "Model",
    "Options",
    "Place",
    "Reading",
    "build_architecture",
    "embedded_path",
    "load_model",
    "quiet",
    "wrap_model",
]

__getattr__, __dir__ = lazy(__name__, _WHERE, _old)
