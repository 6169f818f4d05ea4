"""Backend ``ndif``: jobs on an NDIF server."""

from refusal_nn.backends.ndif._backend import Ndif
from refusal_nn.backends.ndif._deployments import compare_versions, deployed
from refusal_nn.backends.ndif._service import Service
from refusal_nn.backends.ndif._trace import Remote

__all__ = ["Ndif", "Remote", "Service", "compare_versions", "deployed"]
