"""Whether there is a difference at all, before anything is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_nn import stats
from refusal_nn.errors import PromptError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from refusal_nn.contrasts._metric import Metric
    from refusal_nn.prompts import Pairs


def check_differs(
    first: ArrayLike,
    second: ArrayLike,
    *,
    sides: tuple[str, str],
    undefined: str,
    metric: str = "metric",
    others: str = "or another metric",
    positive: bool = False,
    **options: Any,
) -> None:
    """Refuse pairs whose mean difference cannot be told from 0, or is the wrong way round.

    Parameters
    ----------
    first, second : array-like, ``[pair]``
        What is compared.
    sides : (str, str)
        What the two are of, in words.
    undefined : str
        What is a share of the difference, so that there is none without it.
    metric, others : str
        What is measured, and what else could be tried.
    positive : bool
        Whether the first must have more of the metric, as of the refusal log-odds; other metrics
        may point either way.
    **options
        See :func:`refusal_nn.stats.paired_difference`.

    Raises
    ------
    PromptError
        If the interval of the mean difference, by paired bootstrap, includes 0; one family has no
        interval, and then the difference must not be 0. With ``positive``, also if it is negative.
    """
    found = stats.paired_difference(first, second, **options)
    known = bool(np.isfinite(found.low))
    if (found.low <= 0 <= found.high) if known else found.value == 0:
        interval = f", with an interval ({found.low:.3g} to {found.high:.3g}) that includes 0,"
        raise PromptError(
            f"the {metric} differs by {found.value:.3g} on average{interval if known else ''} between "
            f"{sides[0]} and {sides[1]} ({found.n} pairs), so {undefined} is undefined; use pairs the "
            f"model tells apart, more of them, {others}."
        )
    if positive and found.value < 0:
        raise PromptError(
            f"the {metric} is lower by {-found.value:.3g} in {sides[0]} than in {sides[1]} "
            f"({found.n} pairs), so the model refuses the wrong side; swap the columns clean (harmful) "
            "and corrupted (harmless), or use pairs it tells apart."
        )


def check_told_apart(pairs: Pairs, clean: ArrayLike, corrupted: ArrayLike, metric: Metric) -> None:
    """Refuse pairs whose two prompts a metric does not tell apart, or tells apart the wrong way.

    Parameters
    ----------
    pairs : Pairs
    clean, corrupted : array-like, ``[pair]``
        The metric of the harmful and of the harmless prompts.
    metric : Metric

    Raises
    ------
    PromptError
        As :func:`check_differs`, families drawn as wholes; the harmless prompts being the ones that
        are refused is the wrong way.
    """
    check_differs(
        clean,
        corrupted,
        sides=(f"the harmful prompts of {pairs.name!r}", "the harmless ones"),
        undefined="what carries the difference",
        metric=metric.kind,
        positive=metric.signed,
        cluster=pairs.family,
    )
