"""Bootstrap of any smooth function of means of paired columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import RequestError
from refusal_nn.stats._bootstrap import N_RESAMPLES, Estimate, _checked, _estimate


def function_of_means(
    columns: ArrayLike,
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    cluster: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A function of the means of several columns, with its BCa interval.

    Parameters
    ----------
    columns : array-like, ``[n, column]``
        Paired observations; they are resampled together.
    function : callable
        Means ``[..., column]`` to values ``[...]``.
    cluster, confidence, n_resamples, seed
        As :func:`refusal_nn.stats.mean`.

    Returns
    -------
    Estimate

    Raises
    ------
    RequestError
        As :func:`refusal_nn.stats.mean`, or if columns are not two-dimensional.

    Examples
    --------
    >>> import numpy as np
    >>> found = function_of_means([[1.0, 2.0], [2.0, 2.0], [3.0, 4.0]], lambda m: m.max(-1))
    >>> round(float(found.value), 3)
    2.667
    """
    x = _checked(columns, "columns")
    if x.ndim != 2:
        raise RequestError(f"columns have shape {x.shape}; give [observation, column].")
    # the number of observations is a column too: clusters differ in size, so resamples do
    table = np.concatenate([x, np.ones((len(x), 1))], axis=1)

    def statistic(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        means = totals[..., :-1, 0] / totals[..., -1:, 0]
        return np.asarray(function(means))[..., None]

    return _estimate(table, statistic, cluster, confidence, n_resamples, seed)
