"""The metric of both prompts of a pair, refusal tokens and completions; imported for its effect."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_ARDITI = "Arditi et al. 2024"
_GRID = ("intervention", "coefficient", "position", "layer", "candidate", "prompt")
_ANY = ("intervention", "coefficient", "position", "layer", "candidate")

register(
    Spec(
        "clean_metric",
        ("prompt",),
        "float",
        "unit of the metric",
        "Metric of the unpatched run on the harmful prompt; the attrs name the metric",
    ),
    Spec(
        "corrupted_metric",
        ("prompt",),
        "float",
        "unit of the metric",
        "Metric of the unpatched run on the harmless prompt",
    ),
    Spec(
        "refusal_score",
        _GRID,
        "float",
        "nats",
        "Log-odds of the refusal tokens at the last prompt position; higher = more refusal",
        f"{_ARDITI}, section 3.1",
        optional=_ANY,
    ),
    Spec(
        "first_token",
        ("prompt",),
        "int",
        "token id",
        "First token of the greedy completion; -1 if it is empty",
    ),
    Spec("refusal_token", ("token",), "int", "token id", "Tokens that begin a refusal"),
    Spec("refusal_token_text", ("token",), "string", "", "Text of each refusal token"),
    Spec(
        "completion",
        _GRID,
        "string",
        "",
        "Greedy completion, special tokens left out",
        optional=_ANY,
    ),
    Spec(
        "completion_tokens",
        (*_GRID, "token"),
        "int",
        "token id",
        "Generated tokens; -1 after the end",
        optional=_ANY,
    ),
    Spec(
        "n_tokens",
        _GRID,
        "int",
        "tokens",
        "Length of the completion, end token left out",
        optional=_ANY,
    ),
)
