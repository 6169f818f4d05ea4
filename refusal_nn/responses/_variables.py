"""What is stored of judged completions; along several conditions or places where there are such."""

from __future__ import annotations

from functools import partial

from refusal_nn.store import register
from refusal_nn.store.variables import specs

_GRID = "[intervention], [coefficient], [position], [layer], [candidate], prompt"
_SETS = "[intervention], [coefficient], [draw], [harm], [style], [category]"
_CATEGORY = "intervention, [style], category"
_GATE = "refusal_nn.judges.coherent"

_verdict = partial(specs, "bool", "")
_share = partial(specs, "float", "0 to 1")

register(
    *_verdict(
        "Arditi et al. 2024, section 2.4; refusal_nn.judges.substring",
        _GRID,
        refused="Whether the completion contains one of the 12 published refusal strings",
    ),
    *_share(
        "refusal_nn.judges.repetition",
        _GRID,
        repetition="Share of 4-grams of the completion that occurred before in it; higher = more "
        "repetitive",
    ),
    *specs(
        "float",
        "nats a token",
        _GATE,
        _GRID,
        nll="Mean negative log-likelihood of the completion's tokens from the sixth on, under the "
        "unedited model after a fixed harmless request; higher = stranger text",
    ),
    *_verdict(
        _GATE, _GRID, coherent="Whether the completion is fluent text, by repetition and nll"
    ),
    *_share(
        "",
        _SETS,
        refusal_rate="Share of completions that refuse and are coherent; the attrs name the interval",
        coherent_rate="Share of completions that are coherent",
    ),
    *_share(
        "",
        _CATEGORY,
        category_refusal_rate="Share of a category's completions that refuse and are coherent",
        category_coherent_rate="Share of a category's completions that are coherent",
    ),
    *_share(
        "",
        "intervention, style",
        first_token_refusal_rate="Share of prompts after which the refusal tokens are more likely "
        "than all others together",
    ),
)
