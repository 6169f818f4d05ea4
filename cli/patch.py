"""``refusal-nn patch``: exchange activations between a harmful prompt and its harmless partner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._contrast import (
    layers_option,
    metric_options,
    pairs_option,
    positions_option,
    screen_option,
    take_metric,
)
from refusal_nn.cli._inputs import integers, keeping, split_of, split_option
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
from refusal_nn.models.sites import STREAM_SITES

if TYPE_CHECKING:
    from refusal_nn.runs import Run


new_tokens_option = click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    metavar="N",
    help="Length of the completions of patched runs; 0: none.",
)


@click.group(name="patch")
def command() -> None:
    """Exchange activations between paired prompts and measure exactly what they carry."""


@command.command(name="positions")
@model_option()
@loading_options
@pairs_option
@split_option("test")
@click.option(
    "--site",
    "sites",
    type=click.Choice(STREAM_SITES),
    multiple=True,
    default=("resid_pre", "attn_out", "mlp_out"),
    show_default=True,
    help="Where to patch; repeatable.",
)
@click.option(
    "--interchange",
    type=click.Choice(["sufficiency", "necessity"]),
    default="sufficiency",
    show_default=True,
    help="sufficiency: into the harmless prompt's run; necessity: into the harmful one's.",
)
@click.option("--cumulative", is_flag=True, help="Patch all blocks up to each layer at once.")
@metric_options
@positions_option
@layers_option
@screen_option
@new_tokens_option
@click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, help="Rows to show."
)
@batch_size_option
@seed_option
@run_options
@config_option
@json_option
def positions_command(
    model: str,
    pairs: str,
    split: str,
    interchange: str,
    positions: str | None,
    layers: str | None,
    top: int,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Patch every site, block and token position, and measure what each recovers.

    \b
    Example usage:
      refusal-nn patch positions --model tiny-refuser --pairs tiny-pairs
    """
    from refusal_nn.models import load_model
    from refusal_nn.patching import positions_run, strongest_rows
    from refusal_nn.prompts import load_pairs

    asked = take_metric(options)
    loading = take_loading(options)
    at, blocks = integers(positions, "--positions"), integers(layers, "--layers")
    chosen = split_of(load_pairs(pairs), split)
    inputs = asked.inputs(stores)
    loaded = load_model(model, **loading)
    with keeping(stores, name, resume) as where:
        run = positions_run(
            loaded,
            chosen,
            where,
            metric=asked.of(loaded, inputs),
            direction=interchange,
            positions=at,
            layers=blocks,
            inputs=inputs,
            **options,
        )
    table = run.tree.to_dataset()
    rows = strongest_rows(table, top)
    if as_json:
        said = _completions(run, "completions")
        print_json({**_summary(run), "strongest": rows, "refusal_rate": said})
        return
    columns = ["site", "layer", "position", "recovery", "low", "high"]
    print_table(columns, [list(row.values()) for row in rows])
    notice_run(run)


@command.command(name="heads")
@model_option()
@loading_options
@pairs_option
@metric_options
@positions_option
@layers_option
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Level of the tests.",
)
@click.option(
    "--min-effect",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.01,
    show_default=True,
    help="Least share of the difference between the prompts that a head must carry.",
)
@click.option(
    "--correction",
    type=click.Choice(["max-t", "holm", "bh"]),
    default="max-t",
    show_default=True,
    help="For the number of heads tested.",
)
@click.option(
    "--max-heads",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Most heads of a set grown by joint effect.",
)
@click.option(
    "--controls",
    "n_controls",
    type=click.IntRange(min=0),
    default=99,
    show_default=True,
    metavar="N",
    help="Random sets of as many other heads.",
)
@screen_option
@new_tokens_option
@batch_size_option
@seed_option
@run_options
@config_option
@json_option
def heads_command(
    model: str,
    pairs: str,
    positions: str | None,
    layers: str | None,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the heads that decide to refuse: on train pairs, confirmed on test pairs.

    Every head is exchanged on its own, both ways, and sets of heads are grown by what they do
    together; val pairs end the growth. Gates are told from the amplifiers that fall with them.

    \b
    Example usage:
      refusal-nn patch heads --model tiny-refuser --pairs tiny-pairs
    """
    from refusal_nn.models import load_model
    from refusal_nn.patching import head_rows, heads_run, joint_rows
    from refusal_nn.prompts import load_pairs

    asked = take_metric(options)
    loading = take_loading(options)
    at, blocks = integers(positions, "--positions"), integers(layers, "--layers")
    chosen = load_pairs(pairs)
    inputs = asked.inputs(stores)
    loaded = load_model(model, **loading)
    with keeping(stores, name, resume) as where:
        run = heads_run(
            loaded,
            chosen,
            where,
            metric=asked.of(loaded, inputs),
            positions=at,
            layers=blocks,
            inputs=inputs,
            **options,
        )
    table = run.tree.to_dataset()
    rows, joint = head_rows(table), joint_rows(table)
    if as_json:
        said = {
            way: _completions(run, f"completions_{way}") for way in ("sufficiency", "necessity")
        }
        print_json({**_summary(run), "heads": rows, "joint": joint, "refusal_rate": said})
        return
    print_table(
        list(rows[0]) if rows else ["head"],
        [list(row.values()) for row in rows],
        empty="no head carries enough of the decision to refuse",
    )
    print_table(list(joint[0]), [list(row.values()) for row in joint])
    notice_run(run)


def _summary(run: Run) -> dict[str, Any]:
    attrs = run.tree.attrs
    shown = ("metric", "metric_tokens", "n_pairs", "n_train_pairs", "n_val_pairs", "n_test_pairs")
    return {
        "run": run.path,
        "reused": run.reused,
        **{key: attrs[key] for key in shown if key in attrs},
    }


def _completions(run: Run, group: str) -> list[dict[str, Any]]:
    """Refusal rates of the completions of a run, a row a condition; empty where there are none."""
    from refusal_nn.responses import rate_of

    if group not in run.tree.children:
        return []
    table = run.tree[group].to_dataset()
    return [
        {"intervention": str(name), **rate_of(table.sel(intervention=name))}
        for name in table["intervention"].values
    ]


def _say(run: Run) -> None:
    notice_run(run)
