"""Passes that return the metric of each of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_nn.tracing import Answers, Batch, Handle, Start, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.contrasts._metric import Metric
    from refusal_nn.interventions import Edit


def measured(
    work: Work,
    metric: Metric,
    batch: Batch,
    edits: Sequence[Edit] = (),
    *,
    clean: Handle | None = None,
    clean_rows: int = 1,
    start: Start | None = None,
) -> Handle:
    """Ask for a pass of a batch that returns ``metric`` ``[row]``.

    Parameters
    ----------
    work : Work
    metric : Metric
    batch : Batch
        Its rows may be several variants of the pairs, all pairs of the first one first.
    edits : sequence of Edit
    clean : Handle, optional
        The harmful prompts' unpatched run, which held its readout for a metric that compares with it
        (see :meth:`Contrast.held`).
    clean_rows : int
        Without that, how many of the first rows of this pass are that run.
    start : Start, optional
    """
    args: dict[str, Any] = {"metric": metric.plain(), "clean_rows": clean_rows}
    if clean is not None and metric.relative:
        args["clean"] = clean.held("readout")
    return work.forward(
        batch, [metric.readout(work.model)], edits, start=start, after=("metric", args)
    )


def metrics_of(answers: Answers, passes: Iterable[Handle]) -> NDArray[np.float64]:
    """The metric of every row of several passes, in order: ``[row]``."""
    return np.concatenate([values.double().numpy() for values in answers.each(passes, "metric")])
