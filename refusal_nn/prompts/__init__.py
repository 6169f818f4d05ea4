"""What is asked: prompts with labels, splits that do not overlap, and the sets known by name."""

from __future__ import annotations

from refusal_nn.prompts._balance import balance, category_weights
from refusal_nn.prompts._disjoint import Overlap, check_disjoint, duplicates, overlaps
from refusal_nn.prompts._labels import normalise, prompt_id
from refusal_nn.prompts._load import Reading, SetInfo, available, build, combine, load_prompts
from refusal_nn.prompts._load_pairs import EMBEDDED_PAIRS, load_pairs
from refusal_nn.prompts._pairs import Pairs
from refusal_nn.prompts._prompts import Prompts
from refusal_nn.prompts._splits import FRACTIONS, draw_splits
from refusal_nn.prompts._stats import stats

__all__ = [
    "EMBEDDED_PAIRS",
    "FRACTIONS",
    "Overlap",
    "Pairs",
    "Prompts",
    "Reading",
    "SetInfo",
    "available",
    "balance",
    "build",
    "category_weights",
    "check_disjoint",
    "combine",
    "draw_splits",
    "duplicates",
    "load_pairs",
    "load_prompts",
    "normalise",
    "overlaps",
    "prompt_id",
    "stats",
]
