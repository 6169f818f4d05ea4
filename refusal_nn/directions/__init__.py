"""Refusal directions: extract candidates, score them, select one, evaluate it.

References
----------
Arditi et al. 2024, *Refusal in language models is mediated by a single direction*.
"""

from refusal_nn.contrasts._refusal_tokens import discover_refusal_tokens, parse_tokens
from refusal_nn.directions._controls import random_directions
from refusal_nn.directions._evaluate import conditions, evaluate, evaluate_selected
from refusal_nn.directions._extract import extract
from refusal_nn.directions._score import score
from refusal_nn.directions._screen import refusal_scores
from refusal_nn.directions._select import admissible, select
from refusal_nn.directions._selection import Selection
from refusal_nn.runs._old import old_run
from refusal_nn.runs._used import check_new, used

extract_run = old_run("extract_run", extract, "model", "prompts")
score_run = old_run("score_run", score, "model", "candidates", "prompts")
evaluate_run = old_run("evaluate_run", evaluate_selected, "model", "selected", "prompts")

__all__ = [
    "Selection",
    "admissible",
    "check_new",
    "conditions",
    "discover_refusal_tokens",
    "evaluate",
    "evaluate_selected",
    "extract",
    "parse_tokens",
    "random_directions",
    "refusal_scores",
    "score",
    "select",
    "used",
]
