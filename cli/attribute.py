"""``refusal-nn attribute``: which nodes and edges carry the decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._options import (
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    model_option,
    run_options,
    seed_option,
    take_loading,
)
from refusal_nn.cli._output import notice, print_json, print_table
from refusal_nn.cli._progress import progress
from refusal_nn.cli._request import command_line, request

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.recorded import Run

METHODS = ("atp", "eap", "eap-ig", "clean-corrupted", "exact")
METRICS = ("refusal-log-odds", "logit-difference", "projection", "kl")


@click.command(name="attribute")
@model_option()
@loading_options
@click.option(
    "--pairs",
    metavar="PAIRS",
    default="tiny-pairs",
    show_default=True,
    help="Contrast pairs: a name or a CSV, JSON or JSONL file.",
)
@click.option(
    "--split", default="train", show_default=True, help="Split to use: train, val, test or all."
)
@click.option(
    "--level",
    type=click.Choice(["edge", "node"]),
    default="edge",
    show_default=True,
    help="Score every edge, or every head and MLP.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="eap-ig",
    show_default=True,
    help="exact patches each one; the others are first-order (atp: nodes, eap: edges).",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Points between corrupted and clean embedding of eap-ig.",
)
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    default="refusal-log-odds",
    show_default=True,
    help="What is attributed.",
)
@click.option(
    "--refusal-tokens",
    metavar="LIST",
    help="Token texts or ids of refusal-log-odds or logit-difference; default: found from the model.",
)
@click.option("--against", metavar="LIST", help="Tokens on the other side of logit-difference.")
@click.option(
    "--direction", metavar="RUN", help="A direction-select run to project on (--metric projection)."
)
@click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, help="Rows to show."
)
@batch_size_option
@seed_option
@run_options
@config_option
@json_option
def command(
    model: str,
    pairs: str,
    split: str,
    metric: str,
    refusal_tokens: str | None,
    against: str | None,
    direction: str | None,
    top: int,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Attribute refusal to the edges or nodes between a model's parts, pair by pair.

    \b
    Example usage:
      refusal-nn attribute --model tiny-refuser --pairs tiny-pairs
      refusal-nn attribute --model tiny-refuser --level node --method exact
    """
    from refusal_nn.attribution import attribute_run, ranked
    from refusal_nn.models import load_model
    from refusal_nn.recorded import Keeping, open_input

    _check(metric, refusal_tokens, against, direction)
    loading = take_loading(options)
    chosen = _pairs(pairs, split)
    source = None if direction is None else open_input(stores, direction, "direction-select")
    loaded = load_model(model, **loading)
    measured = _metric(loaded, metric, refusal_tokens, against, source)
    with progress() as report:
        run = attribute_run(
            loaded,
            chosen,
            Keeping(stores, name, request(), command_line(), resume, report),
            metric=measured,
            inputs=() if source is None else (source,),
            **options,
        )
    table = run.tree.to_dataset()
    attrs = run.tree.attrs
    rows = ranked(table, top)
    if as_json:
        shown = ("level", "method", "steps", "metric", "metric_tokens")
        print_json(
            {
                "run": run.path,
                "reused": run.reused,
                **{key: attrs[key] for key in shown},
                "pairs": table.sizes["prompt"],
                "clean_metric": float(table["clean_metric"].mean()),
                "corrupted_metric": float(table["corrupted_metric"].mean()),
                "strongest": rows,
            }
        )
        return
    columns = list(rows[0]) if rows else ["src", "score", "se"]
    print_table(columns, [list(row.values()) for row in rows])
    notice(f"{'already complete' if run.reused else 'wrote'}: {run.path}")


def _check(metric: str, tokens: str | None, against: str | None, direction: str | None) -> None:
    """Options that belong to a metric are given with it and with no other."""
    needs = {
        "--against": (against, metric == "logit-difference", metric == "logit-difference"),
        "--direction": (direction, metric == "projection", metric == "projection"),
        "--refusal-tokens": (
            tokens,
            metric == "logit-difference",
            metric in ("refusal-log-odds", "logit-difference"),
        ),
    }
    for option, (value, needed, allowed) in needs.items():
        if value is None and needed:
            raise click.UsageError(f"--metric {metric} needs {option}.")
        if value is not None and not allowed:
            raise click.UsageError(f"{option} has no meaning for --metric {metric}.")


def _pairs(source: str, split: str) -> Any:
    from refusal_nn.prompts import load_pairs

    pairs = load_pairs(source)
    if split == "all":
        return pairs
    if split not in ("train", "val", "test"):
        raise click.BadParameter(f"{split!r} is not train, val, test or all.", param_hint="--split")
    return getattr(pairs, split)


def _metric(
    model: Model, kind: str, tokens: str | None, against: str | None, source: Run | None
) -> Metric | None:
    """The metric asked for; None for refusal tokens that are still to be discovered."""
    from refusal_nn.attribution import Metric
    from refusal_nn.directions import parse_tokens

    if kind == "kl":
        return Metric.kl()
    if source is not None:
        layer = int(source.tree.attrs["layer"])
        return Metric.projection(source.tree.to_dataset()["direction"].values, layer)
    found = parse_tokens(model, tokens)
    if found is None:
        return None
    if kind == "refusal-log-odds":
        return Metric.refusal_log_odds(found)
    return Metric.logit_difference(found, parse_tokens(model, against) or [])
