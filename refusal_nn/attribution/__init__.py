"""Attribution: how much each node or edge of the residual stream's graph carries of a metric.

References
----------
Syed et al. 2023, *Attribution patching outperforms automated circuit discovery*; Hanna et al. 2024,
*Have faith in faithfulness: going beyond circuit overlap when finding model mechanisms*.
"""

from refusal_nn.attribution import _variables as _variables
from refusal_nn.attribution._attribute import LEVELS, METHODS, attribute
from refusal_nn.attribution._ranked import ranked
from refusal_nn.contrasts._metric import KINDS, Metric
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.runs._old import old_run

attribute_run = old_run("attribute_run", attribute, "model", "pairs")

__all__ = [
    "KINDS",
    "LEVELS",
    "METHODS",
    "EdgeGraph",
    "Metric",
    "attribute",
    "ranked",
]
