"""What runs a model, and the command that shows it giving the same numbers everywhere.

A command or a public function that is in none of these tables fails
``test_same_numbers.test_everything_that_runs_a_model_is_registered``.
"""

from __future__ import annotations

PROMPTS = ["--prompts", "prompts.jsonl"]
PAIRS = ["--pairs", "pairs.jsonl"]
TINY = ["--model", "tiny-refuser"]

RUNS: dict[str, tuple[str, list[str]]] = {
    "extract": ("direction extract", [*TINY, *PROMPTS]),
    "score": ("direction score", ["extract", *PROMPTS, "--exhaustive"]),
    "select": ("direction select", ["score"]),
    "evaluate": ("direction evaluate", ["select", *PROMPTS, "--max-new-tokens", "16"]),
    "positions": ("patch positions", [*TINY, *PAIRS, "--max-new-tokens", "8"]),
    "heads": ("patch heads", [*TINY, *PAIRS, "--max-new-tokens", "8", "--controls", "9"]),
    "edges": ("attribute", [*TINY, *PAIRS]),
    "nodes": ("attribute", [*TINY, *PAIRS, "--level", "node", "--method", "atp"]),
    "exact-nodes": ("attribute", [*TINY, *PAIRS, "--level", "node", "--method", "exact"]),
    "projected": (
        "attribute",
        [*TINY, *PAIRS, "--method", "eap", "--metric", "projection", "--direction", "select"],
    ),
    "circuit-few": ("circuit discover", ["edges", "--edges", "40"]),
    "circuit-faithful": ("circuit discover", ["edges", "--faithfulness", "0.8", *PAIRS]),
    "circuit-tested": ("circuit evaluate", ["circuit-faithful", *PAIRS, "--draws", "5"]),
    "circuits": ("circuit compare", ["circuit-few", "circuit-faithful", *PAIRS]),
}
"""Name of the run: the command that makes it, and its arguments, in this order."""

WITHOUT_RUN = {
    "demo": "test_pipeline.test_the_demo_gives_the_same_numbers_as_here",
    "models show": "stores nothing; test_the_same_model_is_shown_everywhere",
}
"""Commands that run a model and make no run of their own. No command is for local models only: each
that takes ``--backend`` is here or in :data:`RUNS`."""

LIBRARY = {
    "attribution.attribute": "edges",
    "circuits.compare_circuits": "circuits",
    "circuits.cross_faithfulness": "circuits",
    "circuits.discover_circuit": "circuit-faithful",
    "circuits.evaluate": "circuit-tested",
    "circuits.evaluate_circuit": "circuit-tested",
    "circuits.smallest": "circuit-faithful",
    "contrasts.discover_refusal_tokens": "extract",
    "contrasts.resolve_metric": "edges",
    "demo.run_demo": "evaluate",
    "directions.evaluate": "evaluate",
    "directions.evaluate_selected": "evaluate",
    "directions.extract": "extract",
    "directions.refusal_scores": "extract",
    "directions.score": "score",
    "runs.repeat": ("test_detached.test_a_detached_run_is_listed_and_completed_by_later_processes"),
    "responses.complete": "evaluate",
    "responses.evaluate": "evaluate",
    "patching.generate": "positions",
    "patching.heads": "heads",
    "patching.patch_heads": "heads",
    "patching.positions": "positions",
    "patching.patch_positions": "positions",
    "patching.refusal_heads": "heads",
    "tracing.capture": "test_activations_and_completions_are_the_same_everywhere",
    "tracing.capture_tokens": "test_activations_and_completions_are_the_same_everywhere",
    "tracing.generate": "test_activations_and_completions_are_the_same_everywhere",
    "tracing.residual_error": "test_activations_and_completions_are_the_same_everywhere",
    "tracing.run": "test_activations_and_completions_are_the_same_everywhere",
    "tracing.verify": "test_activations_and_completions_are_the_same_everywhere",
}
"""Public functions of a model that run it, and the run or test that shows their numbers."""

NO_PASS = {
    "circuits.export",
    "contrasts.align",
    "contrasts.parse_tokens",
    "directions.select",
    "runs.rows_asked",
    "runs.rows_per_pass",
    "runs.same_model",
    "store.default_name",
    "tracing.check_length",
    "tracing.check_requests",
    "tracing.completions",
    "tracing.context_length",
    "tracing.forward_request",
    "tracing.generate_request",
    "tracing.judge_check",
}
"""Public functions that are given a model and do not run it."""
