"""Backends: where requests become answers.

A model's ``backend`` is one of these; :func:`refusal_nn.load_model` chooses it by name. :class:`DryRun`,
:class:`Preflight` and :class:`Remote` do for a trace of your own what the backends do for jobs.
"""

from refusal_nn.backends._dry_run import DryRunBackend
from refusal_nn.backends._local import Local
from refusal_nn.backends._process import DryRun, Preflight
from refusal_nn.backends._size import Limits
from refusal_nn.backends.ndif import Ndif, Remote, Service, compare_versions, deployed

__all__ = [
    "DryRun",
    "DryRunBackend",
    "Limits",
    "Local",
    "Ndif",
    "Preflight",
    "Remote",
    "Service",
    "compare_versions",
    "deployed",
]
