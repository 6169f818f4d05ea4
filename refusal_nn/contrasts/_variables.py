"""The metric of both prompts of a pair; imported once, for its effect on the registry."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

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
)
