"""Whether a metric tells the two prompts of pairs apart, before anything is made of the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refusal_nn import stats
from refusal_nn.errors import PromptError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from refusal_nn.contrasts._metric import Metric
    from refusal_nn.prompts import Pairs


def check_told_apart(pairs: Pairs, clean: ArrayLike, corrupted: ArrayLike, metric: Metric) -> None:
    """Refuse pairs whose mean difference in the metric cannot be told from 0, or is the wrong way.

    Parameters
    ----------
    pairs : Pairs
    clean, corrupted : array-like, ``[pair]``
        The metric of the harmful and of the harmless prompts.
    metric : Metric

    Raises
    ------
    PromptError
        If the interval of the mean difference, by paired bootstrap over families, includes 0; one
        family has no interval, and then the difference must not be 0. With the refusal log-odds,
        also if the harmless prompts are the ones that are refused.
    """
    found = stats.paired_difference(clean, corrupted, cluster=pairs.family)
    known = bool(np.isfinite(found.low))
    if (found.low <= 0 <= found.high) if known else found.value == 0:
        interval = f"with an interval ({found.low:.3g} to {found.high:.3g}) that includes 0"
        raise PromptError(
            f"the {metric.kind} of the harmful and the harmless prompts of {pairs.name!r} differs by "
            f"{found.value:.3g} on average{', ' + interval if known else ''} ({found.n} pairs), so "
            "what carries the difference is undefined; use pairs the model tells apart, more of "
            "them, or another metric."
        )
    if metric.signed and found.value < 0:
        raise PromptError(
            f"the {metric.kind} of the harmful prompts of {pairs.name!r} is lower by "
            f"{-found.value:.3g} than that of the harmless ones ({found.n} pairs), so the model "
            "refuses the wrong side; swap the columns clean (harmful) and corrupted (harmless), or "
            "use pairs it tells apart."
        )
