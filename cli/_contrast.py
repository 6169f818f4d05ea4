"""The metric options: by what a command measures the two prompts of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._options import take, together

if TYPE_CHECKING:
    from refusal_nn.contrasts import Metric
    from refusal_nn.models import Model
    from refusal_nn.runs import Run

METRICS = ("refusal-log-odds", "logit-difference", "projection", "kl")
_TAKERS = {
    "against": ("logit-difference",),
    "direction": ("projection",),
    "refusal_tokens": ("logit-difference", "refusal-log-odds"),
}
"""Which metrics an option is for; all but refusal-log-odds cannot do without it."""

metric_options = together(
    click.option(
        "--metric",
        type=click.Choice(METRICS),
        default="refusal-log-odds",
        show_default=True,
        help="What a run is measured by.",
    ),
    click.option(
        "--refusal-tokens",
        metavar="LIST",
        help="Token texts or ids of refusal-log-odds or logit-difference; default: found from the "
        "model.",
    ),
    click.option("--against", metavar="LIST", help="Tokens on the other side of logit-difference."),
    click.option(
        "--direction",
        metavar="RUN",
        help="A direction-select run to project on (--metric projection).",
    ),
)


def take_metric(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the metric options from a command's values and return them.

    Raises
    ------
    click.UsageError
        If one was given that the metric does not take, or one it needs was not.
    """
    asked = take(values, metric_options)
    kind = asked["metric"]
    for name, takers in _TAKERS.items():
        option, given = f"--{name.replace('_', '-')}", asked[name] is not None
        if given and kind not in takers:
            raise click.UsageError(f"{option} has no meaning for --metric {kind}.")
        if not given and kind in takers and kind != "refusal-log-odds":
            raise click.UsageError(f"--metric {kind} needs {option}.")
    return asked


def inputs_of(asked: Mapping[str, Any], stores: Path) -> list[Run]:
    """The run to project on, as the inputs of a run; none where no direction was named."""
    from refusal_nn.runs import open_run

    named = asked["direction"]
    return [] if named is None else [open_run(stores, named, "direction-select")]


def metric_of(asked: Mapping[str, Any], model: Model, inputs: Sequence[Run]) -> Metric | None:
    """The metric; None for refusal tokens that are still to be found."""
    from refusal_nn.contrasts import Metric, parse_tokens

    if asked["metric"] == "kl":
        return Metric.kl()
    if inputs:
        layer = int(inputs[0].attrs["layer"])
        # the input of block 0 is read before anything that could be patched
        return Metric.projection(inputs[0].tree.to_dataset()["direction"].values, layer)
    found = parse_tokens(model, asked["refusal_tokens"])
    if asked["metric"] == "refusal-log-odds":
        return None if found is None else Metric.refusal_log_odds(found)
    return Metric.logit_difference(found or [], parse_tokens(model, asked["against"]) or [])
