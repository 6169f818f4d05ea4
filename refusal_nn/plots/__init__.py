"""Figures of results: every function takes a Dataset and returns a matplotlib ``Figure``.

No figure is kept in ``pyplot``'s global state, so nothing has to be closed and no display is needed.
"""

from refusal_nn.plots._attribution import edge_scores, node_scores
from refusal_nn.plots._candidates import candidate_heatmaps, direction_norms
from refusal_nn.plots._circuit import circuit_drawing
from refusal_nn.plots._faithfulness import faithfulness_curve
from refusal_nn.plots._patching import patch_heads, patch_positions
from refusal_nn.plots._rates import category_rates, refusal_rates
from refusal_nn.plots._scores import score_distributions
from refusal_nn.plots._style import save, to_svg

__all__ = [
    "candidate_heatmaps",
    "category_rates",
    "circuit_drawing",
    "direction_norms",
    "edge_scores",
    "faithfulness_curve",
    "node_scores",
    "patch_heads",
    "patch_positions",
    "refusal_rates",
    "save",
    "score_distributions",
    "to_svg",
]
