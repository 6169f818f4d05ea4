"""The request that measures a patched pass; being replaced by :mod:`refusal_nn.contrasts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refusal_nn.contrasts._metric import Metric
from refusal_nn.tracing import Batch, Ref, Request, Start, forward_request

if TYPE_CHECKING:
    from refusal_nn.interventions import Edit
    from refusal_nn.models import Model

REFUSAL = "refusal-log-odds"


def needs_clean_run(metric: Metric) -> bool:
    """Whether a metric compares with the harmful prompt's unpatched run."""
    return metric.relative


def measured(
    model: Model,
    metric: Metric,
    batch: Batch,
    edits: Sequence[Edit] = (),
    *,
    clean: int | None = None,
    clean_rows: int = 1,
    start: Start | None = None,
) -> Request:
    """A pass of a batch that returns ``metric`` ``[row]``.

    Parameters
    ----------
    model : Model
    metric : Metric
    batch : Batch
        Its rows may be several variants of the pairs, all pairs of the first one first.
    edits : sequence of Edit
    clean : int, optional
        Which earlier request held the readout of the harmful prompts' unpatched run, for a metric
        that compares with it.
    clean_rows : int
        Without that, how many of the first rows of this pass are that run.
    start : Start, optional
    """
    args: dict[str, Any] = {"metric": metric.plain(), "clean_rows": clean_rows}
    if clean is not None and metric.relative:
        args["clean"] = Ref(clean, "readout")
    return forward_request(
        model, batch, [metric.readout(model)], edits, start=start, after=("metric", args)
    )
