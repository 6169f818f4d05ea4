"""Options of commands that contrast the two prompts of pairs: which pairs, and by which metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from refusal_nn.cli._options import together

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.recorded import Run

F = TypeVar("F", bound=Callable[..., Any])

METRICS = ("refusal-log-odds", "logit-difference", "projection", "kl")
SPLITS = ("train", "val", "test")

pairs_option = click.option(
    "--pairs",
    metavar="PAIRS",
    default="tiny-pairs",
    show_default=True,
    help="Contrast pairs: a name or a CSV, JSON or JSONL file.",
)

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

screen_option = click.option(
    "--screen/--no-screen",
    default=True,
    show_default=True,
    help="With refusal-log-odds: use only pairs whose prompts the model refuses and answers.",
)

positions_option = click.option(
    "--positions",
    metavar="LIST",
    help="Positions from the prompt's end, such as -3,-1.",
)

layers_option = click.option("--layers", metavar="LIST", help="Blocks, such as 3,4,5; default all.")


def check_metric(
    metric: str, tokens: str | None, against: str | None, direction: str | None
) -> None:
    """Refuse options of a metric that was not asked for, and a metric without its options."""
    logits = metric == "logit-difference"
    needs = {
        "--against": (against, logits, logits),
        "--direction": (direction, metric == "projection", metric == "projection"),
        "--refusal-tokens": (tokens, logits, logits or metric == "refusal-log-odds"),
    }
    for option, (value, needed, allowed) in needs.items():
        if value is None and needed:
            raise click.UsageError(f"--metric {metric} needs {option}.")
        if value is not None and not allowed:
            raise click.UsageError(f"{option} has no meaning for --metric {metric}.")


def direction_input(stores: Path, name: str | None) -> tuple[Run, ...]:
    """The run to project on, as the inputs of a run; none without a name."""
    from refusal_nn.recorded import open_input

    return () if name is None else (open_input(stores, name, "direction-select"),)


def metric_from(
    model: Model, kind: str, tokens: str | None, against: str | None, inputs: tuple[Run, ...]
) -> Metric | None:
    """The metric asked for; None for refusal tokens that are still to be found."""
    from refusal_nn.attribution import Metric
    from refusal_nn.directions import parse_tokens
    from refusal_nn.recorded import same_model

    if kind == "kl":
        return Metric.kl()
    if inputs:
        same_model(inputs[0], model)
        layer = int(inputs[0].tree.attrs["layer"])
        # the input of block 0 is read before anything that could be patched
        return Metric.projection(inputs[0].tree.to_dataset()["direction"].values, layer)
    found = parse_tokens(model, tokens)
    if kind == "refusal-log-odds":
        return None if found is None else Metric.refusal_log_odds(found)
    return Metric.logit_difference(found or [], parse_tokens(model, against) or [])


def split_of(pairs: Pairs, split: str) -> Pairs:
    """The pairs of a split, or all of them."""
    if split == "all":
        return pairs
    if split not in SPLITS:
        raise click.BadParameter(
            f"{split!r} is not {', '.join(SPLITS)} or all.", param_hint="--split"
        )
    return getattr(pairs, split)  # type: ignore[no-any-return]


def integers(text: str | None, option: str) -> list[int] | None:
    """Whole numbers from a list such as ``-3,-1``."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers such as 3,4.", param_hint=option
        ) from None
