"""Circuits: which edges carry a behaviour, and how well they do so alone on held-out pairs."""

from refusal_nn.circuits import _variables as _variables
from refusal_nn.circuits._ablation import ABLATIONS
from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._compare import compare, cross_faithfulness
from refusal_nn.circuits._discover import RANKINGS, RULES, discover
from refusal_nn.circuits._evaluate import evaluate
from refusal_nn.circuits._faithfulness import FRACTIONS
from refusal_nn.circuits._formats import FORMATS, export, read
from refusal_nn.circuits._kept import (
    circuit_of,
    compare_circuits,
    discover_circuit,
    evaluate_circuit,
)
from refusal_nn.circuits._nulls import NULLS, random_circuits
from refusal_nn.circuits._sizes import Smallest, smallest
from refusal_nn.circuits._stability import consensus, stability
from refusal_nn.runs._old import old_run

discover_run = old_run("discover_run", discover_circuit, "model", "scores")
evaluate_run = old_run("evaluate_run", evaluate_circuit, "model", "circuit", "pairs")
compare_run = old_run("compare_run", compare_circuits, "model", "circuits")

__all__ = [
    "ABLATIONS",
    "FORMATS",
    "FRACTIONS",
    "NULLS",
    "RANKINGS",
    "RULES",
    "Circuit",
    "Smallest",
    "circuit_of",
    "compare",
    "compare_circuits",
    "consensus",
    "cross_faithfulness",
    "discover",
    "discover_circuit",
    "evaluate",
    "evaluate_circuit",
    "export",
    "random_circuits",
    "read",
    "smallest",
    "stability",
]
