"""Two prompts that differ in one thing: their alignment, and the metric that tells them apart.

A :class:`Contrast` is a model, pairs of prompts aligned token by token, and a metric; measured, it has
the metric of both prompts of every pair. Patching, attribution and circuits all start from one.
"""

from refusal_nn.contrasts import _variables as _variables
from refusal_nn.contrasts._align import AlignedPairs, align
from refusal_nn.contrasts._contrast import Contrast, Measured
from refusal_nn.contrasts._metric import KINDS, Metric, resolve_metric
from refusal_nn.contrasts._refusal_tokens import discover_refusal_tokens, parse_tokens

__all__ = [
    "KINDS",
    "AlignedPairs",
    "Contrast",
    "Measured",
    "Metric",
    "align",
    "discover_refusal_tokens",
    "parse_tokens",
    "resolve_metric",
]
