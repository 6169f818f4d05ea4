"""``refusal-nn attribute``: how much each edge or node carries of a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from refusal_nn.cli._analysis import analysis_command, top_option
from refusal_nn.cli._output import notice_run, print_json, print_table

if TYPE_CHECKING:
    from refusal_nn.runs import Run


def _show(run: Run, as_json: bool, top: int) -> None:
    from refusal_nn.attribution import ranked

    table = run.tree.to_dataset()
    rows = ranked(table, top)
    if as_json:
        shown = ("level", "method", "steps", "metric", "metric_tokens")
        print_json(
            {
                "run": run.path,
                "reused": run.reused,
                **{key: run.attrs[key] for key in shown},
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


command = analysis_command(
    "refusal_nn.attribution._attribute:attribute",
    "attribute",
    options={
        "pairs": {"default": "tiny-pairs"},
        "level": {"help": "Score every edge, or every head and MLP."},
        "method": {
            "help": "exact patches each one; the others are first-order (atp: nodes, eap: edges).",
        },
        "steps": {
            "type": click.IntRange(min=1),
            "help": "Points between corrupted and clean embedding of eap-ig.",
        },
    },
    own=[top_option],
    show=_show,
    text="""Attribute refusal to the edges or nodes between a model's parts, pair by pair.

    \b
    Example usage:
      refusal-nn attribute --model tiny-refuser --pairs tiny-pairs
      refusal-nn attribute --model tiny-refuser --level node --method exact
    """,
)
