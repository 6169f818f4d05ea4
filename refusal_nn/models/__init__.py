"""Models: which one, where its parts are, how its chat template ends."""

from refusal_nn.backends.ndif._link import Limits, Link, compare_versions, deployed
from refusal_nn.backends.ndif._service import Service
from refusal_nn.models._architecture import (
    BLOCK_SITES,
    HEAD_SITES,
    SITES,
    Architecture,
    Place,
    build_architecture,
)
from refusal_nn.models._catalogue import EMBEDDED, embedded_path
from refusal_nn.models._chat import Chat
from refusal_nn.models._model import DTYPES, Model, load_model, quiet, wrap_model

__all__ = [
    "BLOCK_SITES",
    "DTYPES",
    "EMBEDDED",
    "HEAD_SITES",
    "SITES",
    "Architecture",
    "Chat",
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
