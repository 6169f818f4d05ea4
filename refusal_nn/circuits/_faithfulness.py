"""Faithfulness and the areas under it, with intervals by paired bootstrap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_nn import stats
from refusal_nn.contrasts._told_apart import check_differs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from refusal_nn.stats import Estimate

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's circuit sizes."""


def faithfulness(
    metric: ArrayLike, model: ArrayLike, nothing: ArrayLike, **options: Any
) -> Estimate:
    """``mean(m(C) - m(nothing)) / mean(m(model) - m(nothing))`` over pairs.

    Parameters
    ----------
    metric : array-like, ``[pair, ...]``
        Of the circuit's run; trailing axes are circuits of their own.
    model, nothing : array-like, ``[pair]``
        Of the model, and of the run with every edge ablated.
    **options
        ``cluster``, ``confidence``, ``n_resamples``, ``seed``: see
        :func:`refusal_nn.stats.ratio_of_means`.

    Raises
    ------
    PromptError
        If the interval of the denominator includes 0.

    References
    ----------
    Hanna et al. 2024, section 2; means over the data set first, then the ratio.
    """
    base, total = np.asarray(nothing, dtype=float), np.asarray(model, dtype=float)
    check_difference(total, base, **options)
    x = np.asarray(metric, dtype=float)
    base = base.reshape(-1, *(1,) * (x.ndim - 1))
    return stats.ratio_of_means(x - base, np.asarray(model) - np.asarray(nothing), **options)


def check_difference(
    model: ArrayLike, nothing: ArrayLike, *, positive: bool = False, **options: Any
) -> None:
    """Refuse pairs on which the model does no better than nothing.

    Parameters
    ----------
    model, nothing : array-like, ``[pair]``
    positive : bool
        Whether the model must have more of the metric, as of the refusal log-odds; other metrics
        may point either way.
    **options
        See :func:`refusal_nn.stats.paired_difference`.

    Raises
    ------
    PromptError
    """
    check_differs(
        model,
        nothing,
        sides=("the model", "the ablated model"),
        undefined="faithfulness, a share of that difference,",
        others="or another metric or ablation",
        positive=positive,
        **options,
    )


def area_weights(fractions: ArrayLike) -> NDArray[np.float64]:
    """Weights of the trapezoidal rule on a linear axis, ``[fraction]``."""
    x = np.asarray(fractions, dtype=float)
    steps = np.diff(x)
    return np.concatenate([[0], steps]) / 2 + np.concatenate([steps, [0]]) / 2


def cpr(
    metric: ArrayLike, model: ArrayLike, nothing: ArrayLike, fractions: ArrayLike, **options: Any
) -> Estimate:
    """Circuit performance ratio: the integral of faithfulness over the fraction of edges.

    Parameters
    ----------
    metric : array-like, ``[pair, fraction]``
        Of the circuits of the best supporting edges.
    model, nothing : array-like, ``[pair]``
    fractions : array-like, ``[fraction]``
        Increasing; :data:`FRACTIONS` of MIB, with which perfect circuits score .999.
    **options
        See :func:`faithfulness`.

    References
    ----------
    Mueller et al. 2025, MIB, section 3.
    """
    weights = area_weights(fractions)
    x = np.asarray(metric, dtype=float)
    # linear in the curve, so the area is itself a ratio of means
    area = x @ weights - weights.sum() * np.asarray(nothing, dtype=float)
    total = np.asarray(model, dtype=float) - np.asarray(nothing, dtype=float)
    check_difference(model, nothing, **options)
    return stats.ratio_of_means(area, total, **options)


def cmd(
    metric: ArrayLike, model: ArrayLike, nothing: ArrayLike, fractions: ArrayLike, **options: Any
) -> Estimate:
    """Circuit-model distance: the integral of ``|1 - faithfulness|`` over the fraction of edges.

    Parameters are those of :func:`cpr`, with circuits of the largest edges.

    References
    ----------
    Mueller et al. 2025, MIB, section 3.
    """
    check_difference(model, nothing, **options)
    weights = area_weights(fractions)
    base = np.asarray(nothing, dtype=float)
    total = np.asarray(model, dtype=float) - base
    columns = np.concatenate(
        [np.asarray(metric, dtype=float) - base[:, None], total[:, None]], axis=1
    )

    def distance(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.abs(1 - means[..., :-1] / means[..., -1:]) @ weights)

    return stats.function_of_means(columns, distance, **options)
