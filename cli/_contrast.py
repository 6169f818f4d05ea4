"""The metric options: by what a command measures the two prompts of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from refusal_nn.cli._options import together

if TYPE_CHECKING:
    from refusal_nn.contrasts import Metric
    from refusal_nn.models import Model
    from refusal_nn.runs import Run

F = TypeVar("F", bound=Callable[..., Any])

METRICS = ("refusal-log-odds", "logit-difference", "projection", "kl")

metric_options: Callable[[F], F] = together(
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


@dataclass(frozen=True)
class AskedMetric:
    """The metric options as they were typed."""

    kind: str
    tokens: str | None
    against: str | None
    direction: str | None

    def check(self) -> None:
        """Refuse options of a metric that was not asked for, and a metric without its options."""
        logits = self.kind == "logit-difference"
        projection = self.kind == "projection"
        needs = {
            "--against": (self.against, logits, logits),
            "--direction": (self.direction, projection, projection),
            "--refusal-tokens": (self.tokens, logits, logits or self.kind == "refusal-log-odds"),
        }
        for option, (value, needed, allowed) in needs.items():
            if value is None and needed:
                raise click.UsageError(f"--metric {self.kind} needs {option}.")
            if value is not None and not allowed:
                raise click.UsageError(f"{option} has no meaning for --metric {self.kind}.")

    def inputs(self, stores: Path) -> tuple[Run, ...]:
        """The run to project on, as the inputs of a run; none where no direction was named."""
        from refusal_nn.runs import open_run

        if self.direction is None:
            return ()
        return (open_run(stores, self.direction, "direction-select"),)

    def of(self, model: Model, inputs: tuple[Run, ...]) -> Metric | None:
        """The metric; None for refusal tokens that are still to be found."""
        from refusal_nn.contrasts import Metric, parse_tokens

        if self.kind == "kl":
            return Metric.kl()
        if inputs:
            layer = int(inputs[0].attrs["layer"])
            # the input of block 0 is read before anything that could be patched
            return Metric.projection(inputs[0].tree.to_dataset()["direction"].values, layer)
        found = parse_tokens(model, self.tokens)
        if self.kind == "refusal-log-odds":
            return None if found is None else Metric.refusal_log_odds(found)
        return Metric.logit_difference(found or [], parse_tokens(model, self.against) or [])


def take_metric(values: dict[str, Any]) -> AskedMetric:
    """Remove the metric options from a command's values and return them, checked."""
    asked = AskedMetric(
        *(values.pop(name) for name in ("metric", "refusal_tokens", "against", "direction"))
    )
    asked.check()
    return asked
