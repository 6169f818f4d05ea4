"""The metric of both prompts of a pair, refusal tokens and completions; imported for its effect."""

from __future__ import annotations

from refusal_nn.store.variables import register, specs

_GRID = "[intervention], [coefficient], [position], [layer], [candidate], prompt"

register(
    *specs(
        "float",
        "unit of the metric",
        "",
        "prompt",
        clean_metric="Metric of the unpatched run on the harmful prompt; the attrs name the metric",
        corrupted_metric="Metric of the unpatched run on the harmless prompt",
    ),
    *specs(
        "float",
        "nats",
        "Arditi et al. 2024, section 3.1",
        _GRID,
        refusal_score="Log-odds of the refusal tokens at the last prompt position; higher = more refusal",
    ),
    *specs(
        "int",
        "token id",
        "",
        "prompt",
        first_token="First token of the greedy completion; -1 if it is empty",
    ),
    *specs("int", "token id", "", "token", refusal_token="Tokens that begin a refusal"),
    *specs("string", "", "", "token", refusal_token_text="Text of each refusal token"),
    *specs("string", "", "", _GRID, completion="Greedy completion, special tokens left out"),
    *specs(
        "int",
        "token id",
        "",
        f"{_GRID}, token",
        completion_tokens="Generated tokens; -1 after the end",
    ),
    *specs("int", "tokens", "", _GRID, n_tokens="Length of the completion, end token left out"),
)
