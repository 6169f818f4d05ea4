"""``refusal-nn attribute``: how much each edge or node carries of a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusal_nn.cli._analysis import analysis_command, top_option
from refusal_nn.cli._output import Table, show_run

if TYPE_CHECKING:
    from refusal_nn.runs import Run


@analysis_command(
    "refusal_nn.attribution._attribute:attribute",
    "attribute",
    options={"pairs": {"default": "tiny-pairs"}},
    hidden=["check"],
    own=[top_option],
)
def command(run: Run, top: int) -> None:
    """Attribute refusal to the edges or nodes between a model's parts, pair by pair.

    \b
    Example usage:
      refusal-nn attribute --model tiny-refuser --pairs tiny-pairs
      refusal-nn attribute --model tiny-refuser --level node --method exact
    """
    from refusal_nn.attribution import ranked

    table = run.tree.to_dataset()
    rows = ranked(table, top)
    shown = ("level", "method", "steps", "metric", "metric_tokens")
    document = {
        **{key: run.attrs[key] for key in shown},
        "pairs": table.sizes["prompt"],
        "clean_metric": float(table["clean_metric"].mean()),
        "corrupted_metric": float(table["corrupted_metric"].mean()),
        "strongest": rows,
    }
    show_run(run, document, Table(rows))
