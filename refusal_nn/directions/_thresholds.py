"""The published thresholds of the selection rule.

References
----------
Arditi et al. 2024, *Refusal in language models is mediated by a single direction*, appendix C.
"""

from __future__ import annotations

import numpy as np

from refusal_nn.errors import RequestError

KL_MAX = 0.1
"""Largest KL that ablating a candidate may cause on harmless prompts, in nats."""

INDUCE_MIN = 0.0
"""Smallest refusal score of harmless prompts with a candidate added, in nats."""

LAYER_FRACTION = 0.8
"""Share of the layers, from the first on, that candidates may come from."""


def checked_thresholds(kl_max: float, induce_min: float, layer_fraction: float) -> dict[str, float]:
    """The thresholds of the rule as floats.

    Raises
    ------
    RequestError
        If one is no number, or the fraction is none.
    """
    out = {"kl_max": kl_max, "induce_min": induce_min, "layer_fraction": layer_fraction}
    for name, value in out.items():
        number = isinstance(value, int | float | np.integer | np.floating)
        if not number or isinstance(value, bool):
            raise RequestError(f"{name} is {value!r}, which is no number; give one, such as 0.1.")
        if np.isnan(value):
            raise RequestError(f"{name} is NaN; give a number.")
    if not 0 <= layer_fraction <= 1:
        raise RequestError(f"layer_fraction is {layer_fraction}; it must lie between 0 and 1.")
    return {name: float(value) for name, value in out.items()}


def first_late_layer(layer_fraction: float, n_layers: int) -> int:
    """The first layer that candidates may not come from."""
    return int(layer_fraction * n_layers)
