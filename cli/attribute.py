"""``refusal-nn attribute``: which nodes and edges carry the decision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refusal_nn.cli._contrast import metric_options, pairs_option, take_metric
from refusal_nn.cli._inputs import keeping, split_of, split_option
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
from refusal_nn.cli._output import notice_run, print_json, print_table

METHODS = ("atp", "eap", "eap-ig", "clean-corrupted", "exact")


@click.command(name="attribute")
@model_option()
@loading_options
@pairs_option
@split_option("train")
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
@metric_options
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
    from refusal_nn.prompts import load_pairs

    asked = take_metric(options)
    loading = take_loading(options)
    chosen = split_of(load_pairs(pairs), split)
    inputs = asked.inputs(stores)
    loaded = load_model(model, **loading)
    measured = asked.of(loaded, inputs)
    with keeping(stores, name, resume) as where:
        run = attribute_run(
            loaded,
            chosen,
            where,
            metric=measured,
            inputs=inputs,
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
    notice_run(run)
