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

_STEPS = np.diff(FRACTIONS)
_WEIGHTS = np.append(0, _STEPS) / 2 + np.append(_STEPS, 0) / 2
"""Of the trapezoidal rule on a linear axis, ``[fraction]``."""


class Scale:
    """What metrics of circuits' runs are measured by: 0 where every edge is ablated, 1 in the model.

    Parameters
    ----------
    model, nothing : array-like, ``[pair]``
        Metric of the model, and of the run with every edge ablated.
    positive : bool
        Whether the model must have more of the metric, as of the refusal log-odds; other metrics
        may point either way.
    **options
        ``cluster``, ``confidence``, ``n_resamples``, ``seed``: see
        :func:`refusal_nn.stats.ratio_of_means`.

    Attributes
    ----------
    nothing, total : array, ``[pair]``
        Metric of nothing, and what the model has more.

    Raises
    ------
    PromptError
        If the model does no better than nothing on the pairs: the interval of the mean difference
        includes 0.
    """

    def __init__(
        self, model: ArrayLike, nothing: ArrayLike, *, positive: bool = False, **options: Any
    ) -> None:
        check_differs(
            model,
            nothing,
            sides=("the model", "the ablated model"),
            undefined="faithfulness, a share of that difference,",
            others="or another metric or ablation",
            positive=positive,
            **options,
        )
        self.nothing = np.asarray(nothing, dtype=float)
        self.total = np.asarray(model, dtype=float) - self.nothing
        self.options = options

    def faithfulness(self, metric: ArrayLike) -> Estimate:
        """``mean(m(C) - m(nothing)) / mean(m(model) - m(nothing))`` over pairs.

        Parameters
        ----------
        metric : array-like, ``[..., pair]``
            Of the circuit's run; leading axes are circuits of their own.

        References
        ----------
        Hanna et al. 2024, section 2; means over the data set first, then the ratio.
        """
        above = np.asarray(metric, dtype=float) - self.nothing
        return stats.ratio_of_means(np.moveaxis(above, -1, 0), self.total, **self.options)

    def cpr(self, metric: ArrayLike) -> Estimate:
        """Circuit performance ratio: the integral of faithfulness over the fraction of edges.

        Parameters
        ----------
        metric : array-like, ``[fraction, pair]``
            Of the circuits of the best supporting edges, as many as :data:`FRACTIONS` of MIB say, with
            which perfect circuits score .999.

        References
        ----------
        Mueller et al. 2025, MIB, section 3.
        """
        # linear in the curve, so the area is itself a ratio of means
        area = np.asarray(metric, dtype=float).T @ _WEIGHTS - _WEIGHTS.sum() * self.nothing
        return stats.ratio_of_means(area, self.total, **self.options)

    def cmd(self, metric: ArrayLike) -> Estimate:
        """Circuit-model distance: the integral of ``|1 - faithfulness|`` over the fraction of edges.

        Parameters
        ----------
        metric : array-like, ``[fraction, pair]``
            Of the circuits of the largest edges.

        References
        ----------
        Mueller et al. 2025, MIB, section 3.
        """
        columns = np.vstack([np.asarray(metric, dtype=float) - self.nothing, self.total]).T

        def distance(means: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(np.abs(1 - means[..., :-1] / means[..., -1:]) @ _WEIGHTS)

        return stats.function_of_means(columns, distance, **self.options)
