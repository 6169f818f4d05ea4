"""``refusal-nn patch``: exchange activations between a harmful prompt and its harmless partner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._analysis import analysis_command, top_option
from refusal_nn.cli._output import Table, show_run

if TYPE_CHECKING:
    from refusal_nn.runs import Run

SAID = {"pairs": {"default": "tiny-pairs"}, "max_new_tokens": {"metavar": "N"}}


@click.group(name="patch")
def command() -> None:
    """Exchange activations between paired prompts and measure exactly what they carry."""


@analysis_command(
    "refusal_nn.patching._kept:patch_positions",
    "positions",
    group=command,
    options={"sites": {"flag": "--site", "help": "Where to patch; repeatable."}, **SAID},
    own=[top_option],
)
def positions(run: Run, top: int) -> None:
    """Patch every site, block and token position, and measure what each recovers.

    \b
    Example usage:
      refusal-nn patch positions --model tiny-refuser --pairs tiny-pairs
    """
    from refusal_nn.patching import strongest_rows

    rows = strongest_rows(run.tree.to_dataset(), top)
    said = _completions(run, "completions")
    show_run(run, {**_summary(run), "strongest": rows, "refusal_rate": said}, Table(rows))


@analysis_command(
    "refusal_nn.patching._kept:patch_heads",
    "heads",
    group=command,
    options={
        "max_heads": {"metavar": "N"},
        "n_controls": {"flag": "--controls", "metavar": "N"},
        **SAID,
    },
)
def heads(run: Run) -> None:
    """Find the heads that decide to refuse: on train pairs, confirmed on test pairs.

    Every head is exchanged on its own, both ways, and sets of heads are grown by what they do
    together; val pairs end the growth. Gates are told from the amplifiers that fall with them.

    \b
    Example usage:
      refusal-nn patch heads --model tiny-refuser --pairs tiny-pairs
    """
    from refusal_nn.patching import head_rows, joint_rows

    table = run.tree.to_dataset()
    rows, joint = head_rows(table), joint_rows(table)
    said = {way: _completions(run, f"completions_{way}") for way in ("sufficiency", "necessity")}
    show_run(
        run,
        {**_summary(run), "heads": rows, "joint": joint, "refusal_rate": said},
        Table(rows, empty="no head carries enough of the decision to refuse"),
        Table(joint),
    )


def _summary(run: Run) -> dict[str, Any]:
    shown = ("metric", "metric_tokens", "n_pairs", "n_train_pairs", "n_val_pairs", "n_test_pairs")
    return {key: run.attrs[key] for key in shown if key in run.attrs}


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
