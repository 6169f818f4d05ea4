"""What is stored of judged completions; along dims of `_ANY` where there are several."""

from __future__ import annotations

from refusal_nn.store import Spec, register

_ARDITI = "Arditi et al. 2024"
_GRID = ("intervention", "coefficient", "position", "layer", "candidate", "prompt")
_ANY = ("intervention", "coefficient", "position", "layer", "candidate")

register(
    Spec(
        "refused",
        _GRID,
        "bool",
        "",
        "Whether the completion contains one of the 12 published refusal strings",
        f"{_ARDITI}, section 2.4; refusal_nn.judges.substring",
        optional=_ANY,
    ),
    Spec(
        "repetition",
        _GRID,
        "float",
        "0 to 1",
        "Share of 4-grams of the completion that occurred before in it; higher = more repetitive",
        "refusal_nn.judges.repetition",
        optional=_ANY,
    ),
    Spec(
        "nll",
        _GRID,
        "float",
        "nats a token",
        "Mean negative log-likelihood of the completion's tokens from the sixth on, under the "
        "unedited model after a fixed harmless request; higher = stranger text",
        "refusal_nn.judges.coherent",
        optional=_ANY,
    ),
    Spec(
        "coherent",
        _GRID,
        "bool",
        "",
        "Whether the completion is fluent text, by repetition and nll",
        "refusal_nn.judges.coherent",
        optional=_ANY,
    ),
    Spec(
        "refusal_rate",
        ("intervention", "coefficient", "draw", "harm", "style", "category"),
        "float",
        "0 to 1",
        "Share of completions that refuse and are coherent; the attrs name the interval",
        optional=("intervention", "coefficient", "draw", "harm", "style", "category"),
    ),
    Spec(
        "category_refusal_rate",
        ("intervention", "style", "category"),
        "float",
        "0 to 1",
        "Share of a category's completions that refuse and are coherent",
        optional=("style",),
    ),
    Spec(
        "category_coherent_rate",
        ("intervention", "style", "category"),
        "float",
        "0 to 1",
        "Share of a category's completions that are coherent",
        optional=("style",),
    ),
    Spec(
        "first_token_refusal_rate",
        ("intervention", "style"),
        "float",
        "0 to 1",
        "Share of prompts after which the refusal tokens are more likely than all others together",
    ),
    Spec(
        "coherent_rate",
        ("intervention", "coefficient", "draw", "harm", "style", "category"),
        "float",
        "0 to 1",
        "Share of completions that are coherent",
        optional=("intervention", "coefficient", "draw", "harm", "style", "category"),
    ),
)
