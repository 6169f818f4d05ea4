"""The four steps of a direction study as runs, each made from the one before.

Commands, the demo and scripts all go through these, so that a run has the same content whoever made
it. Discovery, selection and test prompts must be disjoint by content and by family: each step
carries the prompts used so far and the next one checks its own against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_nn.contrasts._refusal_tokens import parse_tokens
from refusal_nn.directions._evaluate import conditions
from refusal_nn.directions._evaluate import evaluate as evaluate_direction
from refusal_nn.directions._extract import extract
from refusal_nn.directions._score import score
from refusal_nn.directions._select import Selection, select
from refusal_nn.errors import WorkError
from refusal_nn.interventions import to_json
from refusal_nn.runs import Groups, Keeping, Run, record
from refusal_nn.runs._used import check_new, used

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts
    from refusal_nn.store import Recorder

Work = tuple[Groups, Mapping[str, Any]]

_USED = ("used_text", "used_family")


def extract_run(
    model: Model,
    prompts: Prompts,
    keeping: Keeping,
    *,
    method: str = "difference-in-means",
    positions: Sequence[int] | None = None,
    refusal_tokens: str | None = None,
    screen: bool = True,
    batch_size: int | None = None,
    seed: int = 0,
) -> Run:
    """Candidates as a run ``direction-extract``; see :func:`refusal_nn.directions.extract`."""
    tokens = parse_tokens(model, refusal_tokens)

    def work(recorder: Recorder) -> Work:
        found = extract(
            model,
            prompts,
            method=method,
            positions=positions,
            refusal_tokens=tokens,
            screen=screen,
            batch_size=batch_size,
            seed=seed,
            recorder=recorder,
        )
        return {"/": found}, found.attrs

    options = {
        "method": method,
        "positions": None if positions is None else list(positions),
        "refusal_tokens": tokens,
        "screen": screen,
        "batch_size": batch_size,
        "prompts": prompts.name,
    }
    return record(
        "direction-extract",
        keeping,
        work,
        model=model,
        prompts_hash=prompts.hash,
        options=options,
        seed=seed,
        keep=["sums"],
    )


def score_run(
    model: Model,
    candidates: Run,
    prompts: Prompts,
    keeping: Keeping,
    *,
    kl_max: float = 0.1,
    induce_min: float = 0.0,
    layer_fraction: float = 0.8,
    exhaustive: bool = False,
    screen: bool = True,
    batch_size: int | None = None,
) -> Run:
    """Scores as a run ``direction-score``; see :func:`refusal_nn.directions.score`."""
    table = candidates.tree.to_dataset().load()

    def work(recorder: Recorder) -> Work:
        found = score(
            model,
            table,
            prompts,
            kl_max=kl_max,
            induce_min=induce_min,
            layer_fraction=layer_fraction,
            exhaustive=exhaustive,
            screen=screen,
            batch_size=batch_size,
            recorder=recorder,
        )
        return {"/": found.drop_vars(_USED), "used": used([table])}, found.attrs

    options = {
        "kl_max": kl_max,
        "induce_min": induce_min,
        "layer_fraction": layer_fraction,
        "exhaustive": exhaustive,
        "screen": screen,
        "batch_size": batch_size,
        "prompts": prompts.name,
    }
    return record(
        "direction-score",
        keeping,
        work,
        model=model,
        prompts_hash=prompts.hash,
        options=options,
        seed=0,
        inputs=[candidates],
    )


def select_run(
    model: Model,
    scores: Run,
    keeping: Keeping,
    *,
    kl_max: float = 0.1,
    induce_min: float = 0.0,
    layer_fraction: float = 0.8,
) -> tuple[Run, Selection]:
    """The selected direction as a run ``direction-select``.

    See :func:`refusal_nn.directions.select` for the rule.

    Raises
    ------
    WorkError
        If no candidate is admissible; the message says which criterion dropped how many.
    """
    table = scores.tree.to_dataset().load()
    chosen = select(table, kl_max=kl_max, induce_min=induce_min, layer_fraction=layer_fraction)
    if chosen.layer is None or chosen.direction is None:
        raise WorkError(f"no candidate of run {scores.name!r} is admissible: {chosen.why}")

    def work(recorder: Recorder) -> Work:
        here = {"layer": chosen.layer, "position": chosen.position}
        found = chosen.to_dataset().drop_vars(_USED, errors="ignore")
        # read back from a run, the table also carries that run's own provenance
        found.attrs = {"n_layers": chosen.n_layers, **chosen.thresholds}
        before = scores.tree["used"].to_dataset().load()
        groups = {"/": found, "used": used([before, table])}
        at = table.sel(here)
        attrs = {
            **here,
            **{name: float(at[name]) for name in ("bypass", "induce", "kl")},
            "refusal_tokens": table.attrs["refusal_tokens"],
            "reason": chosen.why,
        }
        return groups, attrs

    run = record(
        "direction-select",
        keeping,
        work,
        model=model,
        prompts_hash=str(scores.tree.attrs["prompts_hash"]),
        options={"kl_max": kl_max, "induce_min": induce_min, "layer_fraction": layer_fraction},
        seed=0,
        inputs=[scores],
    )
    return run, chosen


def evaluate_run(
    model: Model,
    selected: Run,
    prompts: Prompts,
    keeping: Keeping,
    *,
    controls: bool = True,
    max_new_tokens: int = 64,
    batch_size: int | None = None,
    seed: int = 0,
) -> Run:
    """Behaviour of the selected direction as a run ``direction-evaluate``.

    See :func:`refusal_nn.directions.evaluate`. The random controls are recorded by seed.

    Raises
    ------
    PromptError
        If the test prompts share a prompt or family with discovery or selection.
    """
    attrs = selected.tree.attrs
    before = selected.tree["used"].to_dataset().load()
    check_new(prompts, before, role="discovery and selection")
    direction = np.asarray(selected.tree["direction"].values, dtype=np.float64)
    layer = int(attrs["layer"])

    def work(recorder: Recorder) -> Work:
        tree = evaluate_direction(
            model,
            direction,
            layer,
            prompts,
            controls=controls,
            seed=seed,
            max_new_tokens=max_new_tokens,
            refusal_tokens=[int(t) for t in attrs["refusal_tokens"]],
            batch_size=batch_size,
            recorder=recorder,
        )
        groups = {
            "/": tree.to_dataset().assign(text=prompts.to_dataset()["text"]),
            "rates": tree["rates"].to_dataset(),
        }
        found = {str(key): value for key, value in tree.attrs.items()}
        return groups, {**found, "layer": layer, "position": int(attrs["position"])}

    plain = conditions(direction, layer, n_prompts=len(prompts), controls=False)
    return record(
        "direction-evaluate",
        keeping,
        work,
        model=model,
        prompts_hash=prompts.hash,
        options={
            "controls": controls,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "prompts": prompts.name,
        },
        seed=seed,
        interventions=to_json([i for interventions in plain.values() for i in interventions]),
        inputs=[selected],
    )
