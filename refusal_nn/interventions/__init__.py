"""Interventions as data: what to change in a forward pass, where, and when.

Each is a small frozen dataclass that checks itself, survives a round trip through JSON (that is how
a run records what was done), and compiles to plain *edits* which :mod:`refusal_nn.tracing` applies
in the one ordered walk over the model. They compose: a list is applied in order, site by site.
A :class:`FunctionIntervention` applies a function of your own.

Vectors may carry a leading row axis, ``[row, d_model]``: row ``i`` of the batch then gets vector
``i``, which is how a sweep over hundreds of candidate directions becomes one batch.

References
----------
Arditi et al. 2024, *Refusal in language models is mediated by a single direction*, section 2.4.
"""

from refusal_nn.interventions._function import FunctionIntervention
from refusal_nn.interventions._intervention import Edit, Intervention
from refusal_nn.interventions._json import from_json, to_json
from refusal_nn.interventions._named import (
    ActivationAddition,
    DirectionalAblation,
    MeanAblation,
    Patch,
    ZeroAblation,
)
from refusal_nn.models.sites import WRITES

__all__ = [
    "WRITES",
    "ActivationAddition",
    "DirectionalAblation",
    "Edit",
    "FunctionIntervention",
    "Intervention",
    "MeanAblation",
    "Patch",
    "ZeroAblation",
    "from_json",
    "to_json",
]
