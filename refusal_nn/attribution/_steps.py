"""Attribution as a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refusal_nn.attribution._attribute import attribute, check_options
from refusal_nn.contrasts._align import align
from refusal_nn.contrasts._metric import Metric
from refusal_nn.directions import discover_refusal_tokens
from refusal_nn.models._blocks import block_places
from refusal_nn.runs import Groups, Keeping, Run, record
from refusal_nn.runs._batches import rows_asked

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder


def attribute_run(
    model: Model,
    pairs: Pairs,
    keeping: Keeping,
    *,
    metric: Metric | None = None,
    method: str = "eap-ig",
    level: str = "edge",
    steps: int = 5,
    batch_size: int | None = None,
    seed: int = 0,
    inputs: tuple[Run, ...] = (),
) -> Run:
    """Scores as a run ``attribute-edges`` or ``attribute-nodes``.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    keeping : Keeping
    metric : Metric, optional
        Default: the log-odds of refusal tokens that are discovered on these pairs.
    method, level, steps, batch_size
        See :func:`refusal_nn.attribution.attribute`.
    seed : int
        For the prompts that refusal tokens are discovered on.
    inputs : tuple of Run
        Runs that the metric is made from.
    """
    # all that can be refused without a pass is, so that nothing half-made is left
    check_options(model, metric, method, level, steps)
    rows_asked(model, batch_size)
    align(model, pairs)
    block_places(model)

    def work(recorder: Recorder) -> tuple[Groups, Mapping[str, Any]]:
        chosen = metric
        if chosen is None:
            tokens = discover_refusal_tokens(
                model, pairs.prompts(), batch_size=batch_size, seed=seed, recorder=recorder
            )
            chosen = Metric.refusal_log_odds(tokens)
        found = attribute(
            model,
            pairs,
            chosen,
            method=method,
            level=level,
            steps=steps,
            batch_size=batch_size,
            recorder=recorder,
        )
        return {"/": found}, found.attrs

    return record(
        f"attribute-{level}s",
        keeping,
        work,
        model=model,
        prompts_hash=pairs.hash,
        options={
            "method": method,
            "level": level,
            "steps": steps,
            "batch_size": batch_size,
            "prompts": pairs.name,
            **({} if metric is None else metric.to_attrs()),
        },
        seed=seed,
        inputs=list(inputs),
    )
